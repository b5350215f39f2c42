"""Methods: their phases, their exact density on a toy, and errors before anything is compiled."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import Network, masks, methods, models, pruning, trees
from prunejax.data import Dataset
from prunejax.training import Trained, train

GRADUAL = ["gradual_natural", "gradual_adversarial", "blind"]
PRUNING = ["one_shot", *GRADUAL]
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


def run(method):
    dataset, start = toy()
    rows = []
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    phases = method.phases(STEPS)
    trained = train(NETWORK, start, phases, dataset, batch_size=16, log=rows.append, mesh=mesh)
    return trained, rows


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


@pytest.mark.parametrize("name", methods.METHODS)
@pytest.mark.parametrize("epochs", [2, 5])
def test_the_phases_take_the_epochs_of_the_method(name, epochs):
    options = {"pruning_epochs": 1} if name in GRADUAL else {}
    phases = methods.create(name, epochs=epochs, **options).phases(STEPS)
    assert sum(phase.epochs for phase in phases) == epochs


@pytest.mark.parametrize("name", methods.METHODS)
def test_networks_count_only_at_the_target_sparsity(name):
    options = {"pruning_epochs": 3} if name in GRADUAL else {}
    (phase,) = methods.create(name, epochs=9, **options).phases(STEPS)
    assert phase.selectable_from == (3 if name in GRADUAL else 0)


def test_dense_has_no_mask_and_one_shot_prunes_the_smallest_weights_at_its_beginning():
    params = toy()[1].variables["params"]
    for name in ("dense", "one_shot"):
        (phase,) = methods.create(name).phases(STEPS)
        trainable, auxiliary, mask = phase.begin(params, masks.dense(params), jax.random.key(0))
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


def test_lists_become_tuples_so_that_methods_are_hashable():
    method = methods.create("one_shot", include=["Dense_*"], exclude=["Dense_1/*"])
    assert method.include == ("Dense_*",)
    assert hash(method) == hash(dataclasses.replace(method))


def test_a_pattern_that_matches_nothing_is_an_error_before_training():
    with pytest.raises(ValueError, match=r"'Conv_\*' matches none of the weights"):
        run(methods.create("gradual_natural", epochs=2, pruning_epochs=1, include=["Conv_*"]))
