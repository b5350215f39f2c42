"""Methods: their phases, and their exact density on a toy."""

import dataclasses
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import Network, masks, methods, pruning, trees
from prunejax.training import Start, Trained, checkpoints, evidence
from tests.methods.toy import (
    NETWORK,
    SIZES,
    STEPS,
    WEIGHTS,
    assert_pruned_exactly,
    removed,
    run,
    run_phases,
    toy,
)

GRADUAL = ["gradual_natural", "gradual_adversarial", "blind"]
CHEAP = {"attack_steps": 2}


def begin(phase, params):
    """What a phase begins with on a network that is dense so far, given the whole toy."""
    dataset, start = toy()
    variables = {**start.variables, "params": params}
    examples = jnp.asarray(dataset.images), jnp.asarray(dataset.labels)
    known = evidence(NETWORK, variables, phase.objective, *examples, jax.random.key(0))
    return phase.begin(Start(params, masks.dense(params), None, known))


# -- phases ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "epochs", "selectable"),
    [
        ("dense", {}, [9], [0]),
        ("one_shot", {}, [9], [0]),
        *((name, {"pruning_epochs": 3}, [9], [3]) for name in GRADUAL),
        ("iterative", {"rounds": 3}, [9, 9, 9], [None, None, 0]),
        ("iterative", {"rates": [2, 5]}, [9, 9], [None, 0]),
        ("lottery", {"rounds": 2}, [9, 9, 9], [None, None, 0]),
        ("lottery", {"rounds": 1, "rewind_epochs": 2}, [2, 9, 9], [None, None, 0]),
        ("alternating", {"pruning_epochs": 6, "dense_epochs": 2, "sparse_epochs": 1}, [9], [6]),
        ("regrowing", {"regrowing_epochs": 7}, [9], [0]),
        ("hydra", {"score_epochs": 4}, [4, 9], [None, 0]),
    ],
)
def test_phases_take_their_epochs_and_networks_count_only_at_the_target(
    name, options, epochs, selectable
):
    phases = methods.create(name, epochs=9, **options).phases(STEPS)
    assert [phase.epochs for phase in phases] == epochs
    assert [phase.selectable_from for phase in phases] == selectable


@pytest.mark.parametrize(
    ("name", "options", "sparsity"),
    [
        ("dense", {}, 0),
        ("blind", {"sparsity": 0.95}, 0.95),
        ("iterative", {"sparsity": 0.875, "rounds": 3}, 0.875),
        ("lottery", {"rates": [2, 64]}, 1 - 1 / 64),  # the rates count
    ],
)
def test_the_target_is_that_of_the_end(name, options, sparsity):
    assert methods.create(name, **options).target_sparsity == pytest.approx(sparsity, abs=1e-12)


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


@pytest.mark.parametrize(
    ("name", "schedule"),
    [*((name, "cubic") for name in GRADUAL), ("gradual_natural", "constant_rate")],
)
def test_gradual_methods_follow_their_schedule_and_end_on_the_target(name, schedule):
    begin = 1 if name == "blind" else 0
    method = methods.create(
        name,
        pruning_schedule=schedule,
        epochs=4,
        pruning_begin=begin,
        pruning_epochs=2,
        mask_frequency=3,
        sparsity=0.8,
        learning_rate=0.02,
        **CHEAP,
    )
    trained, rows = run(method)
    assert removed(trained) == [round(0.8 * n) for n in SIZES]
    assert_pruned_exactly(trained)

    # The mask changes at steps 0, 3, 6 and 8, or 4, 7 and 8; steps 3, 7, 11 and 15 are the last of
    # their epochs.
    shares = (0, 3 / 4, 1, 1) if begin else (3 / 8, 6 / 8, 1, 1)
    sparsities = [0.8 - 0.8 * (1 - share) ** 3 for share in shares]
    if schedule == "constant_rate":  # of the four changes the second is in force, and so on
        sparsities = [1 - 0.2 ** (i / 4) for i in (2, 3, 4, 4)]
    densities = [1 - sum(round(s * n) for n in SIZES) / sum(SIZES) for s in sparsities]
    assert [row["density"] for row in rows] == pytest.approx(densities, abs=1e-12)


@pytest.mark.parametrize("initial", [0.0, 0.5])
def test_a_gradual_method_begins_with_the_sparsity_that_it_is_given(initial):
    method = methods.create(
        "gradual_natural", sparsity=0.75, initial_sparsity=initial, pruning_epochs=2,
        mask_frequency=3, pruning_begin=1,
    )  # fmt: skip
    changes = method.sparsities(steps_per_epoch=8)
    shares = {8: 0, 11: 3 / 8, 14: 6 / 8, 16: 1}
    assert [step for step, _ in changes] == list(shares)
    assert [s for _, s in changes] == pytest.approx(
        [0.75 - (0.75 - initial) * (1 - share) ** 3 for share in shares.values()], abs=1e-12
    )


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


def test_one_shot_at_initialisation_keeps_the_path_that_synflow_leaves_without_data():
    method = methods.create(
        "one_shot",
        epochs=1,
        sparsity=1 - 2 / sum(SIZES),
        criterion="synflow",
        rounds=100,
        guard=False,
        examples=0,
        at_initialisation=True,
        adversarial=False,
    )
    assert not method.phases(STEPS)[0].needs_trained
    trained, _ = run(method)
    first, second = (np.argwhere(trees.flatten(trained.mask)[path]) for path in WEIGHTS)
    assert len(first) == len(second) == 1
    assert first[0, 1] == second[0, 0]  # the unit that one reaches is the one that the other leaves


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


@pytest.mark.parametrize(
    ("options", "sparsities"),
    [
        ({"rounds": 3, "sparsity": 0.875}, (0.5, 0.75, 0.875)),  # the same share of what is left
        ({"rates": [2, 10]}, (0.5, 0.9)),
    ],
)
def test_rounds_end_at_their_sparsities_and_nothing_comes_back(options, sparsities):
    method = methods.create("iterative", epochs=1, adversarial=False, learning_rate=0.02, **options)
    met, validate = watch()
    trained = run_phases(method.phases(STEPS), validate=validate)
    kept = [sum(SIZES) - round(s * sum(SIZES)) for s in sparsities]
    assert [there.sum() for there in met] == kept
    for before, after in itertools.pairwise(met):
        assert not (after & ~before).any(), "what was gone came back"
    assert_pruned_exactly(trained)


def test_rounds_lead_to_n_of_m():
    units = {"granularity": "1:4", "exclude": ("Dense_1/*",)}
    method = methods.create("iterative", epochs=1, rounds=2, sparsity=0.75, **units)
    met, validate = watch()
    trained = run_phases(method.phases(STEPS), validate=validate)
    first = SIZES[0]
    assert [int(there[:first].sum()) for there in met] == [first // 2, first // 4]
    kept = trees.flatten(trained.mask)[WEIGHTS[0]]
    np.testing.assert_array_equal(kept.reshape(-1, 4, kept.shape[1]).sum(1), 1)


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


class Counting(nn.Module):
    """A linear network that counts the batches it has been trained on, as normalisation does."""

    @nn.compact
    def __call__(self, x, train=False):
        count = self.variable("counts", "batches", jnp.zeros, ())
        count.value += train
        return nn.Dense(3)(x.reshape(len(x), -1))


def test_what_counts_beside_the_weights_is_rewound_with_them():
    network = Network(Counting())
    variables = network.init(jax.random.key(0), (4, 4, 1))
    method = methods.create("lottery", epochs=1, rounds=1, rewind_epochs=1, learning_rate=0.02)
    start, phases = Trained(variables, masks.dense(variables["params"])), method.phases(STEPS)
    trained = run_phases(phases, network=network, start=start)
    # One epoch early and one dense; the round goes back to the end of the first and has its own.
    assert trained.variables["counts"]["batches"] == 2 * STEPS


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


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("regrowing", {"regrowing_epochs": 1, "allocation": "uniform"}),
        ("gradual_natural", {"criterion": "random", "pruning_epochs": 1}),
        ("one_shot", {"criterion": "random", "adversarial": False}),
    ],
)
def test_what_is_drawn_at_random_is_a_function_of_the_seed(name, options):
    method = methods.create(name, epochs=2, sparsity=0.5, **options)
    drawn = [
        trees.flatten(run_phases(method.phases(STEPS), seed=seed).mask)["Dense_0/kernel"]
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.any(drawn[0] != drawn[2])


def test_a_ticket_goes_back_to_the_learning_rate_of_its_early_weights():
    method = methods.create(
        "lottery", epochs=3, rewind_epochs=1, rounds=2, optimizer="sgd", learning_rate=0.5
    )

    def rates(phase, number):
        # With momentum m and slopes of one the first step is -(1 + m) times the rate, and so on.
        tx, ones = phase.optimizer({"w": jnp.array(True)}), {"w": jnp.ones((1, 1))}
        state, found, trace = tx.init(ones), [], 0.0
        for _ in range(number):
            updates, state = tx.update(ones, state, ones)
            trace = 1 + 0.9 * trace
            found.append(float(-updates["w"][0, 0]) / (1 + 0.9 * trace))
        return found

    whole = [0.25 * (1 + math.cos(math.pi * step / (4 * STEPS))) for step in range(4 * STEPS)]
    early, *others = method.phases(STEPS)
    np.testing.assert_allclose(rates(early, STEPS), whole[:STEPS], rtol=1e-5)
    assert [phase.name for phase in others] == ["dense", "round 1", "round 2"]
    for phase in others:
        np.testing.assert_allclose(rates(phase, 3 * STEPS), whole[STEPS:], rtol=1e-5)


def test_one_shot_on_a_pruned_network_brings_nothing_back():
    params = toy()[1].variables["params"]
    (phase,) = methods.create(
        "one_shot", sparsity=0.5, criterion="random", allocation="uniform"
    ).phases(STEPS)
    before = pruning.prune(params, 0.4, pruning.Pruner())
    examples = (jnp.asarray(of) for of in (toy()[0].images, toy()[0].labels))
    known = evidence(NETWORK, {"params": params}, phase.objective, *examples, jax.random.key(0))
    _, _, mask = phase.begin(Start(params, before, None, known))
    assert masks.density(params, mask) == pytest.approx(0.5, abs=0.01)
    for path in WEIGHTS:
        assert not np.any(trees.flatten(mask)[path] & ~trees.flatten(before)[path])
