"""Methods whose criteria look at data: which network they score, by which objective."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prunejax import Network, attacks, masks, methods, pruning, training, trees
from prunejax.training import Trained, checkpoints
from tests.methods.toy import NETWORK, SIZES, WEIGHTS, run, toy


def _toy_images():
    dataset, _ = toy()
    return jnp.asarray(dataset.images, jnp.float32) / 255, jnp.asarray(dataset.labels)


def _snip(params):
    images, labels = _toy_images()

    def loss(params):
        logits = NETWORK({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return jax.tree.map(lambda w, g: np.abs(w * g), params, jax.grad(loss)(params))


def _expected_abs(params):
    images, _ = _toy_images()
    layer = params["Dense_0"]
    hidden = images.reshape(len(images), -1) @ layer["kernel"] + layer["bias"]
    return jnp.maximum(hidden, 0).mean(axis=0)


@pytest.mark.exhaustive
def test_one_shot_takes_the_gradient_of_its_objective_on_the_training_examples():
    method = methods.create(
        "one_shot", epochs=1, sparsity=0.5, criterion="snip", adversarial=False, examples=64
    )
    trained, _ = run(method)
    scores = trees.flatten(_snip(toy()[1].variables["params"]))
    flat = np.concatenate([scores[path].ravel() for path in WEIGHTS])
    kept = np.concatenate([np.asarray(trees.flatten(trained.mask)[p]).ravel() for p in WEIGHTS])
    assert flat[kept].min() >= flat[~kept].max()
    assert kept.sum() == sum(SIZES) - round(0.5 * sum(SIZES))


@pytest.mark.parametrize("criterion", ["expected_abs", "kl", "cka", "pls_vip"])
def test_one_shot_runs_the_network_on_training_examples(criterion):
    method = methods.create(
        "one_shot",
        epochs=1,
        sparsity=0.43,  # three of seven units
        criterion=criterion,
        granularity="column",
        allocation="uniform",
        exclude=["Dense_1/*"],
        adversarial=False,
        examples=64,
    )
    trained, _ = run(method)
    kept = np.asarray(trees.flatten(trained.mask)["Dense_0/kernel"]).ravel()
    params = toy()[1].variables["params"]
    images, labels = _toy_images()
    if criterion == "expected_abs":
        scores = _expected_abs(params)
    else:
        more = (labels,) if criterion == "pls_vip" else ()
        score = getattr(pruning.activations, criterion)
        scores = score(NETWORK, {"params": params}, images, *more)["Dense_0"]["kernel"]
    scores = np.asarray(scores).ravel()
    assert kept.sum() == 4
    assert scores[kept].min() > scores[~kept].max()


# -- by the stored statistics: single examples, and sums over filters ------------------------------


class Pool(nn.Module):
    """A layer, its normalisation, the mean over space and a last layer."""

    layer: nn.Module

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(self.layer(x)))
        return nn.Dense(3)(x.reshape(x.shape[0], -1, x.shape[-1]).mean(axis=1))


def _convolved(image, kernel):
    """The sums over 2x2 windows, `[H, W, C]` -> `[H - 1, W - 1, features]`."""
    height, width = image.shape[0] - 1, image.shape[1] - 1
    return sum(
        jnp.einsum("hwc,cf->hwf", image[i : i + height, j : j + width], kernel[i, j])
        for i in range(2)
        for j in range(2)
    )


@pytest.mark.parametrize("eps", [0.0, 0.1])
@pytest.mark.parametrize(
    ("layer", "shape", "apply"),
    [
        (nn.Dense(5), (6,), lambda x, kernel: x @ kernel),
        (nn.Conv(5, (2, 2), padding="VALID"), (4, 4, 2), _convolved),
    ],
)
def test_fisher_and_taylor_take_the_stored_statistics(layer, shape, apply, eps):
    network, key = Network(Pool(layer), mean=0.4, std=0.3), jax.random.key(1)
    params = network.init(key, shape)["params"]
    moments = {
        "mean": jnp.array([0.5, -0.3, 0.1, 0.2, -0.6]),
        "var": jnp.array([0.4, 2.0, 0.7, 1.5, 3.0]),
    }
    images = jax.random.randint(key, (7, *shape), 0, 256).astype(jnp.uint8)
    labels = jnp.arange(7) % 3

    def cross_entropy(params, image, label):
        norm, last = params["BatchNorm_0"], params["Dense_0"]
        x = apply((image - 0.4) / 0.3, params["layer"]["kernel"]) + params["layer"]["bias"]
        x = (x - moments["mean"]) / jnp.sqrt(moments["var"] + 1e-5)
        x = jnp.maximum(x * norm["scale"] + norm["bias"], 0).reshape(-1, 5).mean(axis=0)
        logits = x @ last["kernel"] + last["bias"]
        return jnp.log(jnp.exp(logits).sum()) - logits[label]

    gradients = []
    for image, label in zip(images / 255, labels, strict=True):
        uphill = jnp.sign(jax.grad(cross_entropy, argnums=1)(params, image, label))
        attacked = jnp.clip(image + eps * uphill, 0, 1)
        gradients.append(jax.grad(cross_entropy)(params, attacked, label))
    expected = {
        "fisher": jax.tree.map(lambda *g: sum(x**2 for x in g) / 7, *gradients),
        "taylor": jax.tree.map(lambda w, *g: (w * sum(g) / 7) ** 2, params, *gradients),
    }

    objective = training.objectives.adversarial(
        training.adversaries.prescribed(attacks.create("fgsm"), eps)
    )
    variables = {"params": params, "batch_stats": {"BatchNorm_0": moments}}
    known = training.evidence(network, variables, objective, images, labels, key)
    for name, by_hand in expected.items():
        found = pruning.scores(params, name, evidence=known)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-7), found, by_hand
        )
        assert np.median(found["layer"]["kernel"]) > 1e-6


# -- while training: the network as the step before the change left it -----------------------------


class Normed(nn.Module):
    """Its statistics move far with every step."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(7)(x.reshape(x.shape[0], -1))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        return nn.Dense(3)(nn.relu(x))


NORMED = Network(Normed())
OPTIONS = {"learning_rate": 0.02, "schedule": "constant", "attack_steps": 1}
CHANGE_AFTER = 3  # steps, of one batch of all examples each


def squares(network, variables, images, labels, key):
    """An objective that no method has."""
    logits, collections = network.train(variables, images)
    loss = jnp.mean(jnp.sum((logits - jax.nn.one_hot(labels, 3)) ** 2, axis=-1))
    return loss, (collections, {})


def train_normed(method, objective=None, **options):
    phases = method.phases(1)
    if objective is not None:
        phases = [dataclasses.replace(phase, objective=objective) for phase in phases]
    dataset, _ = toy()
    variables = NORMED.init(jax.random.key(0), (4, 4, 1))
    start = Trained(variables, masks.dense(variables["params"]))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    return training.train(NORMED, start, phases, dataset, batch_size=64, mesh=mesh, **options)


def pruned_once(name, *, sparsity=0.43, **options):
    """The mask changes once, after as many steps as `dense_until` makes, and stays."""
    if name == "alternating":
        options |= {"dense_epochs": CHANGE_AFTER - 1, "adversarial": False}
    return methods.create(
        name,
        epochs=CHANGE_AFTER + 1,
        pruning_epochs=CHANGE_AFTER - 1,
        sparsity=sparsity,
        examples=64,
        **OPTIONS,
        **options,
    )


@pytest.fixture(scope="module")
def dense_until():
    """The variables after the steps before the change, by objective."""

    def until(objective):
        method = methods.create("dense", epochs=CHANGE_AFTER, adversarial=False, **OPTIONS)
        return train_normed(method, objective).variables

    return {objective: until(objective) for objective in (None, squares)}


def lowest_gone(scores, number):
    """What is kept where the lowest of all go."""
    order = np.argsort(np.asarray(scores), axis=None, kind="stable")
    kept = np.ones(np.size(scores), bool)
    kept[order[:number]] = False
    return kept


@pytest.mark.parametrize(
    "name", ["gradual_natural", pytest.param("alternating", marks=pytest.mark.exhaustive)]
)
def test_snip_takes_the_gradient_of_the_phases_objective_at_the_weights_of_the_step(
    name, dense_until
):
    method = pruned_once(name, criterion="snip", allocation="global")
    found = trees.flatten(train_normed(method, squares).mask)
    images, labels = _toy_images()

    def kept_by(variables):
        def loss(params):
            return squares(NORMED, {**variables, "params": params}, images, labels, None)[0]

        grads = jax.grad(loss)(variables["params"])
        scores = trees.flatten(
            jax.tree.map(lambda w, g: jnp.abs(w * g), variables["params"], grads)
        )
        return lowest_gone(np.concatenate([scores[path].ravel() for path in WEIGHTS]), 57)

    kept = np.concatenate([np.asarray(found[path]).ravel() for path in WEIGHTS])
    assert round(0.43 * sum(SIZES)) == 57
    np.testing.assert_array_equal(kept, kept_by(dense_until[squares]))
    # Which tells apart: the start, and another objective's way from there.
    assert (kept != kept_by(NORMED.init(jax.random.key(0), (4, 4, 1)))).any()
    assert (kept != kept_by(dense_until[None])).any()


def test_expected_abs_normalises_by_the_statistics_of_the_step(dense_until):
    method = pruned_once(
        "gradual_natural",
        sparsity=0.86,  # six of seven
        criterion="expected_abs",
        granularity="column",
        include=["Dense_0/*"],
    )
    found = trees.flatten(train_normed(method).mask)["Dense_0/kernel"]
    images, _ = _toy_images()

    def kept_by(variables, statistics):
        params, norm = variables["params"], variables["params"]["BatchNorm_0"]
        moments = statistics["batch_stats"]["BatchNorm_0"]
        maps = images.reshape(64, -1) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
        maps = (maps - moments["mean"]) / np.sqrt(moments["var"] + 1e-5)
        maps = np.maximum(maps * norm["scale"] + norm["bias"], 0)
        return lowest_gone(maps.mean(axis=0), 6)

    now, first = dense_until[None], NORMED.init(jax.random.key(0), (4, 4, 1))
    np.testing.assert_array_equal(np.asarray(found).ravel(), kept_by(now, now))
    assert (kept_by(now, now) != kept_by(now, first)).any()


@pytest.mark.exhaustive
def test_regrowing_drops_by_the_data_and_the_statistics_of_the_step():
    def method(epochs):
        return methods.create(
            "regrowing",
            epochs=epochs,
            regrowing_epochs=epochs,
            mask_frequency=2,
            sparsity=0.4,  # three of seven
            drop=0.25,  # one of four
            final_drop=0.25,
            grow="random",
            criterion="expected_abs",
            granularity="column",
            allocation="uniform",
            include=["Dense_0/*"],
            examples=64,
            adversarial=False,
            **OPTIONS,
        )

    before = train_normed(method(CHANGE_AFTER - 1))  # its mask never changes
    unchanged = dataclasses.replace(method(CHANGE_AFTER), regrowing_epochs=CHANGE_AFTER - 1)
    now, found = train_normed(unchanged).variables, train_normed(method(CHANGE_AFTER))
    images, _ = _toy_images()
    params, moments = now["params"], now["batch_stats"]["BatchNorm_0"]
    maps = images.reshape(64, -1) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    maps = (maps - moments["mean"]) / np.sqrt(moments["var"] + 1e-5)
    maps = maps * params["BatchNorm_0"]["scale"] + params["BatchNorm_0"]["bias"]
    there = np.asarray(before.mask["Dense_0"]["kernel"]).ravel()
    scores = np.where(there, np.maximum(maps, 0).mean(axis=0), np.inf)
    kept = np.asarray(found.mask["Dense_0"]["kernel"]).ravel()
    assert there.sum() == kept.sum() == 4
    survivors = there.copy()
    survivors[np.argmin(scores)] = False
    assert kept[survivors].all()
    assert not kept[np.argmin(scores)], "what was dropped was drawn again; take another seed"


@pytest.mark.exhaustive
def test_a_run_that_was_stopped_before_the_change_ends_alike(tmp_path):
    # Adversarial: what the evidence draws at random is the step's too.
    method = pruned_once("gradual_adversarial", criterion="taylor", granularity="column")
    expected = train_normed(method)

    class StopError(Exception):
        pass

    def stop(row):
        if row["epoch"] == 2:
            raise StopError

    with pytest.raises(StopError):
        train_normed(method, store=(store := checkpoints.Store(tmp_path)), log=stop)
    store.close()
    found = train_normed(method, store=(store := checkpoints.Store(tmp_path)))
    store.close()
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "criterion",
    ["gradient", "taylor", "grasp", "fisher", "synflow", "hrank", "kl", "cka", "pls_vip"],
)
def test_so_does_every_criterion_of_data(criterion, dense_until):
    method = pruned_once(
        "gradual_natural", criterion=criterion, granularity="column", include=["Dense_0/*"]
    )
    found = trees.flatten(train_normed(method).mask)["Dense_0/kernel"]
    now, (images, labels) = dense_until[None], _toy_images()
    known = training.evidence(
        NORMED,
        now,
        training.objectives.natural(),
        jnp.round(255 * images).astype(jnp.uint8),
        labels,
        jax.random.key(0),
    )
    pruner = method.pruner()
    expected = pruning.prune(now["params"], 0.43, pruner, evidence=known)
    np.testing.assert_array_equal(found, expected["Dense_0"]["kernel"])
    units = pruner.scores(now["params"], masks.dense(now["params"]), known)["Dense_0/kernel"]
    removed, kept = np.split(np.sort(np.ravel(units)), [3])
    assert removed[-1] < kept[0], "of equal scores the index decides, whatever the criterion"
