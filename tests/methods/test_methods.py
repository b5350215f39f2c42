"""Methods: their phases, their exact density on a toy, and errors before anything is compiled."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prunejax import Network, masks, methods, models, pruning, trees
from prunejax.data import Dataset
from prunejax.training import Start, Trained, checkpoints, evidence, train

GRADUAL = ["gradual_natural", "gradual_adversarial", "blind"]
PRUNING = [name for name in methods.METHODS if name != "dense"]
CHEAP = {"attack_steps": 2}

NETWORK = Network(models.create("mlp", 3, widths=[7]))
WEIGHTS = ("Dense_0/kernel", "Dense_1/kernel")
SIZES = (4 * 4 * 7, 7 * 3)
STEPS = 4  # 64 examples in batches of 16


@functools.cache
def toy():
    """Three classes that differ in brightness, and a dense network to start from."""
    rng = np.random.default_rng(0)
    labels = np.arange(64) % 3
    images = rng.integers(0, 80, (64, 4, 4, 1)) + 80 * labels[:, None, None, None]
    dataset = Dataset(images.astype(np.uint8), labels, ("dark", "grey", "light"), "toy", "train")
    variables = NETWORK.init(jax.random.key(0), (4, 4, 1))
    return dataset, Trained(variables, masks.dense(variables["params"]))


def run_phases(phases, **options):
    dataset, start = toy()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    return train(NETWORK, start, phases, dataset, batch_size=16, mesh=mesh, **options)


def run(method):
    rows = []
    return run_phases(method.phases(STEPS), log=rows.append), rows


def begin(phase, params):
    """What a phase begins with on a network that is dense so far, given the whole toy."""
    dataset, start = toy()
    variables = {**start.variables, "params": params}
    examples = jnp.asarray(dataset.images), jnp.asarray(dataset.labels)
    known = evidence(NETWORK, variables, phase.objective, *examples, jax.random.key(0))
    return phase.begin(Start(params, masks.dense(params), None, known))


def removed(trained):
    return [int((~np.asarray(trees.flatten(trained.mask)[path])).sum()) for path in WEIGHTS]


def assert_pruned_exactly(trained):
    """The weights that the mask removes are zero, and no others."""
    mask = trees.flatten(trained.mask)
    for path, leaf in trees.flatten(trained.variables["params"]).items():
        if path in WEIGHTS:  # a bias is zero where its unit is dead
            keep = np.broadcast_to(mask[path], leaf.shape)
            np.testing.assert_array_equal(np.asarray(leaf) == 0, ~keep)


# -- phases ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "epochs", "selectable"),
    [
        ("dense", {}, [9], [0]),
        ("one_shot", {}, [9], [0]),
        *((name, {"pruning_epochs": 3}, [9], [3]) for name in GRADUAL),
        ("iterative", {"rounds": 3}, [9, 9, 9], [None, None, 0]),
        ("lottery", {"rounds": 2}, [9, 9, 9], [None, None, 0]),
        ("lottery", {"rounds": 1, "rewind_epochs": 2}, [2, 9, 9], [None, None, 0]),
        ("alternating", {"pruning_epochs": 6, "dense_epochs": 2, "sparse_epochs": 1}, [9], [6]),
        ("regrowing", {"regrowing_epochs": 7}, [9], [0]),
    ],
)
def test_phases_take_their_epochs_and_networks_count_only_at_the_target(
    name, options, epochs, selectable
):
    phases = methods.create(name, epochs=9, **options).phases(STEPS)
    assert [phase.epochs for phase in phases] == epochs
    assert [phase.selectable_from for phase in phases] == selectable


def test_dense_has_no_mask_and_one_shot_prunes_the_smallest_weights_at_its_beginning():
    params = toy()[1].variables["params"]
    for name in ("dense", "one_shot"):
        (phase,) = methods.create(name).phases(STEPS)
        trainable, auxiliary, mask = begin(phase, params)
        expected = masks.dense(params)
        if name == "one_shot":
            expected = pruning.prune(params, 0.9, pruning.Pruner(allocation="global"))
        jax.tree.map(np.testing.assert_array_equal, mask, expected)
        jax.tree.map(np.testing.assert_array_equal, trainable, masks.apply(params, expected))
        assert auxiliary == ()
        in_optimizer = pruning.mask_of(phase.optimizer(mask).init(trainable))
        assert (in_optimizer is None) == (name == "dense")


# -- a toy -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRADUAL)
def test_gradual_methods_follow_the_cubic_schedule_and_end_on_the_target(name):
    method = methods.create(
        name,
        epochs=4,
        pruning_epochs=2,
        mask_frequency=3,
        sparsity=0.8,
        learning_rate=0.02,
        **CHEAP,
    )
    trained, rows = run(method)
    assert removed(trained) == [round(0.8 * n) for n in SIZES]
    assert_pruned_exactly(trained)

    # The mask changes at steps 0, 3, 6 and 8; steps 3, 7, 11 and 15 are the last of their epochs.
    sparsities = [0.8 - 0.8 * (1 - at / 8) ** 3 for at in (3, 6, 8, 8)]
    densities = [1 - sum(round(s * n) for n in SIZES) / sum(SIZES) for s in sparsities]
    assert [row["density"] for row in rows] == pytest.approx(densities, abs=1e-12)


def test_one_shot_keeps_the_largest_weights_of_the_dense_network():
    method = methods.create("one_shot", epochs=2, sparsity=0.75, learning_rate=0.02, **CHEAP)
    trained, rows = run(method)
    start = toy()[1].variables["params"]
    expected = pruning.prune(start, 0.75, pruning.Pruner(allocation="global"))
    jax.tree.map(np.testing.assert_array_equal, trained.mask, expected)
    assert sum(removed(trained)) == round(0.75 * sum(SIZES))
    assert_pruned_exactly(trained)
    kept = sum(SIZES) - round(0.75 * sum(SIZES))
    assert [row["density"] for row in rows] == [kept / sum(SIZES)] * 2
    before, after = (
        trees.flatten(p)["Dense_0/kernel"] for p in (start, trained.variables["params"])
    )
    keep = np.asarray(trees.flatten(expected)["Dense_0/kernel"])
    assert np.any((before != after)[keep])  # fine-tuned; dead units do not move


@pytest.mark.parametrize("name", ["one_shot", "gradual_natural"])
def test_the_choices_of_the_pruner_reach_the_mask(name):
    options = {"pruning_epochs": 0} if name in GRADUAL else {"adversarial": False}
    method = methods.create(
        name, epochs=1, sparsity=0.5, allocation="global", exclude=["Dense_1/*"], **options
    )
    trained, _ = run(method)
    mask = trees.flatten(trained.mask)
    assert int((~np.asarray(mask["Dense_0/kernel"])).sum()) == SIZES[0] // 2
    assert mask["Dense_1/kernel"].shape == ()


def watch():
    """Which weights are there after each epoch, as a list that training's validation fills."""
    met = []

    def validate(classifier):
        weights = [trees.flatten(classifier.params)[path] for path in WEIGHTS]
        met.append(np.concatenate([np.asarray(w).ravel() != 0 for w in weights]))
        return {}

    return met, validate


def test_rounds_take_the_same_share_of_what_is_left():
    method = methods.create(
        "iterative", epochs=1, rounds=3, sparsity=0.875, adversarial=False, learning_rate=0.02
    )
    met, validate = watch()
    trained = run_phases(method.phases(STEPS), validate=validate)
    kept = [sum(SIZES) - round(s * sum(SIZES)) for s in (0.5, 0.75, 0.875)]
    assert [there.sum() for there in met] == kept
    for before, after in itertools.pairwise(met):
        assert not (after & ~before).any(), "what was gone came back"
    assert_pruned_exactly(trained)


def test_a_ticket_is_the_mask_of_the_trained_network_on_its_early_weights(tmp_path):
    method = methods.create(
        "lottery",
        epochs=2,
        rounds=2,
        rewind_epochs=1,
        sparsity=0.75,
        learning_rate=0.02,
    )
    *dense, first, second = phases = method.phases(STEPS)
    early = run_phases(dense[:1])

    def by_hand(start, sparsity):
        mask = pruning.prune(
            start.params, sparsity, pruning.Pruner(allocation="global"), current=start.mask
        )
        return masks.apply(early.variables["params"], mask), (), mask

    def full(start):
        mask = pruning.Pruner().initial(start.params)
        return by_hand(start._replace(mask=mask), 0.5)

    expected = run_phases(
        [
            *dense,
            dataclasses.replace(first, begin=full),
            dataclasses.replace(second, begin=lambda start: by_hand(start, 0.75)),
        ]
    )
    found = run_phases(phases)
    jax.tree.map(np.testing.assert_array_equal, found, expected)

    class StopError(Exception):
        pass

    def stop(row):
        if row["phase"] == "round 1" and row["epoch"] == 5:
            raise StopError

    with pytest.raises(StopError):  # after the second epoch of the first round
        run_phases(phases, store=(store := checkpoints.Store(tmp_path)), log=stop)
    store.close()
    again = run_phases(phases, store=(store := checkpoints.Store(tmp_path)))
    store.close()
    jax.tree.map(np.testing.assert_array_equal, again, expected)


def test_sparse_and_dense_phases_alternate():
    method = methods.create(
        "alternating",
        epochs=7,
        pruning_epochs=5,
        sparse_epochs=1,
        dense_epochs=1,
        sparsity=0.75,
        adversarial=False,
    )
    trained, rows = run(method)
    sparse = (sum(SIZES) - round(0.75 * sum(SIZES))) / sum(SIZES)
    # The mask changes after the update of the first step of an epoch.
    assert [row["density"] for row in rows] == [1, sparse, 1, sparse, 1, sparse, sparse]
    assert_pruned_exactly(trained)


def test_connections_move_and_their_number_does_not():
    method = methods.create(
        "regrowing",
        epochs=3,
        regrowing_epochs=2,
        mask_frequency=2,
        sparsity=0.6,
        drop=0.5,
        allocation="uniform",
        adversarial=False,
        learning_rate=0.02,
    )
    met, validate = watch()
    trained = run_phases(method.phases(STEPS), validate=validate)
    assert removed(trained) == [round(0.6 * n) for n in SIZES]
    first, second, third = met
    assert (first & ~second).any(), "nothing was dropped"
    assert (second & ~first).any(), "nothing was grown"
    assert not (third & ~second).any(), "the mask moved after its last change"


# -- criteria that look at data --------------------------------------------------------------------


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


def test_dense_training_learns_the_toy_and_removes_nothing():
    method = methods.create("dense", adversarial=False, epochs=15, learning_rate=0.05)
    trained, rows = run(method)
    assert [row["density"] for row in rows] == [1.0] * 15
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    dataset, _ = toy()
    logits = NETWORK(trained.variables, jnp.asarray(dataset.images, jnp.float32) / 255)
    assert np.mean(np.argmax(logits, -1) == dataset.labels) > 0.9


def test_without_budget_adversarial_pruning_is_natural_pruning():
    # Every epoch's loss, through all the machinery: attack, objective, pruning, optimiser.
    options = {"epochs": 2, "pruning_epochs": 1, "sparsity": 0.5, **CHEAP}
    _, adversarial = run(methods.create("gradual_adversarial", eps=0.0, **options))
    _, natural = run(methods.create("gradual_natural", **options))
    losses = [[row["loss"] for row in rows] for rows in (adversarial, natural)]
    np.testing.assert_allclose(*losses, rtol=1e-4)


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("one_shott", {}, r"Unknown method 'one_shott'. Did you mean 'one_shot'\?"),
        ("blind", {"sparsty": 0.9}, r"method 'blind' 'sparsty'. Did you mean 'sparsity'\?"),
        ("dense", {"sparsity": 0.9}, "option of method 'dense' 'sparsity'"),
        ("dense", {"optimizer": "adm"}, r"Unknown optimizer 'adm'. Did you mean 'adam'\?"),
        ("dense", {"schedule": "cosin"}, r"Unknown schedule 'cosin'. Did you mean 'cosine'\?"),
        ("dense", {"norm": "linff"}, r"Unknown norm 'linff'. Did you mean 'linf'\?"),
        ("blind", {"criterion": "magnitud"}, "Did you mean 'magnitude'"),
        ("blind", {"allocation": "glob"}, "Did you mean 'global'"),
        ("one_shot", {"granularity": "filters"}, "Did you mean 'filter'"),
    ],
)
def test_unknown_names_name_the_nearest(name, options, message):
    with pytest.raises(ValueError, match=message):
        methods.create(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        *((name, {"sparsity": s}, f"sparsity is {s}") for name in PRUNING for s in (1.0, -0.1, 90)),
        *((name, {"epochs": 0}, "epochs (is|=) 0") for name in methods.METHODS),
        *((name, {"pruning_epochs": 30}, "pruning_epochs is 30") for name in GRADUAL),
        *((name, {"pruning_epochs": -1}, "pruning_epochs is -1") for name in GRADUAL),
        *((name, {"mask_frequency": 0}, "frequency is 0") for name in GRADUAL),
        ("iterative", {"rounds": 0}, "rounds is 0"),
        ("lottery", {"rewind_epochs": -1}, "rewind_epochs is -1"),
        ("alternating", {"pruning_epochs": 30}, "pruning_epochs is 30"),
        ("alternating", {"sparse_epochs": 0}, "sparse is 0"),
        ("regrowing", {"regrowing_epochs": 31}, "regrowing_epochs is 31"),
        ("regrowing", {"drop": 1.5}, r"drop is 1\.5"),
        *(
            (name, {"criterion": "kl"}, "criterion is 'kl', which needs more than weights")
            for name in (*GRADUAL, "alternating", "regrowing")
        ),
        ("dense", {"label_smoothing": 1.0}, r"label_smoothing is 1\.0"),
        ("dense", {"label_smoothing": -0.1}, r"label_smoothing is -0\.1"),
        ("dense", {"learning_rate": 0.0}, r"learning_rate is 0\.0"),
        ("dense", {"eps": -0.1}, r"eps is -0\.1"),
        ("dense", {"attack_steps": 0}, "steps is 0"),
        ("dense", {"relative_step": -1.0}, r"relative_step is -1\.0"),
        ("dense", {"optimizer": "adam", "weight_decay": 1e-4}, "weight_decay"),
        ("blind", {"scale": 0.0}, r"scale is 0\.0"),
        ("blind", {"cutoff": -1.0}, r"cutoff is -1\.0"),
        ("blind", {"deepfool_steps": 0}, "steps is 0"),
        ("blind", {"candidates": 0}, "candidates is 0"),
    ],
)
def test_values_out_of_range_are_named_at_once(name, options, message):
    with pytest.raises(ValueError, match=message):
        methods.create(name, **options)


def test_a_negative_number_of_examples_is_named():
    with pytest.raises(ValueError, match="examples of phase 'finetune' is -1"):
        methods.create("one_shot", examples=-1).phases(STEPS)


def test_lists_become_tuples_so_that_methods_are_hashable():
    method = methods.create("one_shot", include=["Dense_*"], exclude=["Dense_1/*"])
    assert method.include == ("Dense_*",)
    assert hash(method) == hash(dataclasses.replace(method))


def test_a_pattern_that_matches_nothing_is_an_error_before_training():
    with pytest.raises(ValueError, match=r"'Conv_\*' matches none of the weights"):
        run(methods.create("gradual_natural", epochs=2, pruning_epochs=1, include=["Conv_*"]))
