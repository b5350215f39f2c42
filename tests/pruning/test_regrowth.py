"""Masks that move: RigL and SET against numpy, AC/DC, and what stays zero meanwhile."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunejax import pruning, trees
from prunejax.pruning import Pruner, granularity, regrowth

PATHS = ("first/kernel", "second/kernel")


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    array = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {
        "first": {"kernel": array(10, 12), "bias": array(12)},
        "second": {"kernel": array(12, 5), "bias": array(5)},
    }


def loss(params, step):
    """Moves every weight at every step, missing ones too if they are not held."""
    wave = 1 + 0.5 * jnp.sin(0.7 * step)
    return sum(
        jnp.sum((p - 3 * wave * t) ** 2 * (1 + t**2))
        for p, t in zip(jax.tree.leaves(params), jax.tree.leaves(parameters(1)), strict=True)
    )


@functools.partial(jax.jit, static_argnums=(0, 3))
def run(tx, params, state, steps):
    """All parameters, states and gradients on the way, stacked; those of step i after it."""

    def step(carry, i):
        params, state = carry
        grads = jax.grad(loss)(params, i)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, state, grads)

    return jax.lax.scan(step, (params, state), jnp.arange(steps))[1]


def arrays(tree):
    return {path: np.asarray(leaf) for path, leaf in trees.flatten(tree).items()}


def moments(inner_state, params):
    structure = jax.tree.structure(params)
    like_params = lambda node: jax.tree.structure(node) == structure  # noqa: E731
    nodes = jax.tree.leaves(inner_state, is_leaf=like_params)
    return [arrays(node) for node in nodes if like_params(node)]


@pytest.mark.parametrize(
    ("allocation", "grow"), [("uniform", "gradient"), ("erk", "random"), ("global", "gradient")]
)
def test_each_layer_exchanges_its_worst_units_and_keeps_its_number(grow, allocation):
    params, pruner = parameters(), Pruner(allocation=allocation)
    options = {"end": 30, "frequency": 6, "drop": 0.5, "final_drop": 0.1, "grow": grow}
    tx = pruning.regrowing(optax.adam(0.05), pruner, 0.6, **options)
    start = tx.init(params)
    trajectory, states, grads = run(tx, params, start, 40)
    weights, kept, slopes = arrays(trajectory), arrays(states.mask), arrays(grads)
    first = arrays(start.mask)
    assert sum(int((~first[path]).sum()) for path in PATHS) == round(0.6 * 180)

    for path in PATHS:
        before, number = first[path], int(first[path].sum())
        for step in range(40):
            now, w = kept[path][step], weights[path][step]
            assert now.sum() == number
            np.testing.assert_array_equal(w[~now], 0)
            for moment in moments(states.inner, params):
                np.testing.assert_array_equal(moment[path][step][~now], 0)
            grown = now & ~before
            if step in (6, 12, 18, 24):
                share = 0.1 + 0.4 * (1 + math.cos(math.pi * step / 30)) / 2
                count = round(share * number)
                assert grown.sum() <= count  # fewer where what was dropped grows again
                np.testing.assert_array_equal(w[grown], 0)
                if grow == "gradient" and np.any(grown):
                    slope = np.abs(slopes[path][step])
                    assert slope[grown].min() >= slope[~now].max()
            else:
                np.testing.assert_array_equal(now, before)
            before = now
    assert np.all(arrays(states.mask)["first/bias"])
    # What grew has moved by the end.
    assert all(np.all(weights[path][-1][kept[path][-1]] != 0) for path in PATHS)


def test_weights_move_within_their_groups():
    params, pruner = parameters(), Pruner(granularity="1:2")
    tx = pruning.regrowing(optax.adam(0.05), pruner, 0.5, end=30, frequency=6, drop=0.5)
    trajectory, states, _ = run(tx, params, tx.init(params), 20)
    for path in PATHS:
        kept, weights = arrays(states.mask)[path], arrays(trajectory)[path]
        steps, inputs, outputs = kept.shape
        of_groups = kept.reshape(steps, inputs // 2, 2, outputs)
        np.testing.assert_array_equal(of_groups.sum(axis=2), 1)
        np.testing.assert_array_equal(weights[~kept], 0)
        assert np.any(kept[-1] != kept[0])


@pytest.mark.parametrize("aggregate", ["mean", "l2"])
def test_the_first_mask_takes_alike_from_large_filters_and_small_ones(aggregate):
    """However the pruner's own scores become a filter's: means and lengths of draws tell sizes."""
    params = {"small": jnp.zeros((3, 3, 3, 64)), "large": jnp.zeros((3, 3, 64, 64))}
    pruner = Pruner(granularity="filter", allocation="global", aggregate=aggregate)
    kept = arrays(regrowth.at_random(params, pruner, 0.2, jax.random.key(0)))
    deviation = math.sqrt(0.2 * 0.8 / 64)
    assert all(abs((~kept[path]).mean() - 0.2) < 3 * deviation for path in params)


values = st.lists(st.integers(-3, 3), min_size=12, max_size=12)


@settings(deadline=None, max_examples=50)
@given(values, values, st.lists(st.booleans(), min_size=12, max_size=12), st.integers(0, 4))
def test_exchange_by_hand(scores, growth, there, quarter):
    scores, growth, there = np.array(scores, float), np.array(growth, float), np.array(there)
    share = quarter / 4
    number = round(share * there.sum())
    layer = (jnp.array(there), jnp.float32(scores), jnp.float32(growth))
    found = np.asarray(regrowth.exchange(granularity.WEIGHT, *layer, share))
    survivors = there.copy()
    alive = np.flatnonzero(there)
    survivors[alive[np.argsort(scores[alive], kind="stable")[:number]]] = False
    free = np.flatnonzero(~survivors)
    expected = survivors.copy()
    grown = free[np.argsort(growth[free], kind="stable")[len(free) - number :]]
    expected[grown] = True
    np.testing.assert_array_equal(found, expected)
    assert found.sum() == there.sum()


@settings(deadline=None, max_examples=25)
@given(
    st.permutations(range(24)), st.permutations(range(24)), st.integers(0, 4),
    st.sampled_from(["1:2", "2:4", "1:4", "3:4"]),
)  # fmt: skip
def test_groups_exchange_their_worst_weights_and_keep_their_number(scores, growth, quarter, name):
    """In numpy: dropped by rank within the group, then by score; grown within the group."""
    keep, group = map(int, name.split(":"))
    units = granularity.create(name)
    weights, slopes = (np.float32(v).reshape(8, 3) + 1 for v in (scores, growth))
    whole, one = jnp.ones((8, 3), bool), lambda x: x
    of = functools.partial(
        units.scores, shape=(8, 3), reduction=granularity.AGGREGATES["mean"], finish=one
    )
    there = np.asarray(of(jnp.array(weights), whole) > group - keep - 0.5)
    found = regrowth.exchange(
        units, jnp.array(there), of(jnp.array(weights), jnp.array(there)),
        of(jnp.array(slopes), whole), quarter / 4,
    )  # fmt: skip

    lists = [  # (weight, slope, there) of each group
        list(zip(*(x[i : i + group, j] for x in (weights, slopes, there)), strict=True))
        for i in range(0, 8, group) for j in range(3)
    ]  # fmt: skip
    by_rank = sorted(
        (rank, w) for of_group in lists
        for rank, w in enumerate(sorted(w for w, _, kept in of_group if kept))
    )  # fmt: skip
    dropped = {w for _, w in by_rank[: round(quarter / 4 * len(by_rank))]}
    expected = set()
    for of_group in lists:
        survivors = [w for w, _, kept in of_group if kept and w not in dropped]
        others = sorted((s, w) for w, s, _ in of_group if w not in survivors)
        grown = [w for _, w in others[len(others) - (keep - len(survivors)) :]]
        expected |= {*survivors, *grown}
    assert set(weights[np.asarray(found)].tolist()) == expected


def test_one_exchange_by_hand():
    params = {"w": jnp.array([[1.0, -2.0, 3.0, 0.0, 0.0, 0.0]])}
    grads = {"w": jnp.array([[0.0, 0.0, 0.0, 5.0, -7.0, 6.0]])}
    mask = {"w": jnp.array([[True, True, True, False, False, False]])}
    tx = pruning.regrowing(
        optax.sgd(0.1, momentum=0.9), Pruner(), 0.5, mask=mask, end=2, frequency=1, drop=2 / 3
    )
    state = tx.init(params)
    update = jax.jit(tx.update)
    updates, state = update(grads, state, params)  # step 0 changes nothing
    np.testing.assert_array_equal(state.mask["w"], mask["w"])
    updates, state = update(grads, state, params)
    # f(1) = 2/3 (1 + cos(pi/2)) / 2 = 1/3: of three, the 1 goes and the 7 comes.
    np.testing.assert_array_equal(state.mask["w"], [[False, True, True, False, True, False]])
    np.testing.assert_array_equal(optax.apply_updates(params, updates)["w"], [[0, -2, 3, 0, 0, 0]])


def test_filters_move_whole():
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(3, 3, 2, 8)), jnp.float32)}
    tx = pruning.regrowing(
        optax.sgd(0.01), Pruner(granularity="filter"), 0.5, end=9, frequency=1, drop=0.5
    )
    state = tx.init(params)
    first = np.asarray(state.mask["w"])
    update = jax.jit(tx.update)
    for _ in range(3):
        updates, state = update({"w": params["w"] - 1}, state, params)
        params = optax.apply_updates(params, updates)
    assert state.mask["w"].shape == (1, 1, 1, 8)
    assert int(state.mask["w"].sum()) == 4
    assert np.any(first != np.asarray(state.mask["w"]))
    np.testing.assert_array_equal(
        np.asarray(params["w"])[..., ~np.asarray(state.mask["w"]).ravel()], 0
    )


def test_the_state_is_made_of_plain_arrays_and_its_randomness_of_the_key():
    params = {"w": parameters()["first"]["kernel"]}
    final = {}
    for seed in (1, 2):
        tx = pruning.regrowing(
            optax.sgd(0.1),
            Pruner(),
            0.5,
            end=9,
            frequency=1,
            grow="random",
            key=jax.random.key(seed),
        )
        start = tx.init(params)
        for leaf in jax.tree.leaves(start):  # typed keys could not be saved
            assert jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == bool
        # From one mask on, so that it is what grows that differs.
        update = jax.jit(tx.update)
        same = {"w": jnp.arange(120).reshape(10, 12) % 2 == 0}
        _, state = update(params, start._replace(mask=same, step=start.step + 1), params)
        assert int(state.mask["w"].sum()) == 60
        final[seed] = np.asarray(state.mask["w"])
    assert np.any(final[1] != final[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": 1.5}, r"drop is 1\.5"),
        ({"final_drop": -0.1}, r"final_drop is -0\.1"),
        ({"sparsity": 1.0}, r"sparsity is 1\.0"),
        ({"frequency": 0}, "frequency is 0"),
        ({"end": 0}, "end is 0"),
        ({"grow": "gradients"}, r"Unknown grow 'gradients'\. Did you mean 'gradient'\?"),
        ({"pruner": Pruner("fisher")}, "criterion 'fisher' needs loss and batches"),
    ],
)
def test_impossible_values_are_named(options, message):
    options = {"pruner": Pruner(), "sparsity": 0.5, "end": 10, **options}
    with pytest.raises(ValueError, match=message):
        pruning.regrowing(optax.sgd(0.1), **options)


def test_a_first_mask_that_does_not_fit_is_refused():
    params = parameters()
    tx = pruning.regrowing(optax.sgd(0.1), Pruner(), 0.5, end=9, mask={"w": jnp.ones((1, 1), bool)})
    with pytest.raises(ValueError, match="different leaves"):
        tx.init(params)


# -- AC/DC -----------------------------------------------------------------------------------------


def test_sparse_and_dense_phases_alternate_and_weights_come_back_from_zero():
    params = parameters()
    schedule = pruning.alternating(0.75, begin=4, end=24, sparse=5, dense=5)
    tx = pruning.optimizer(optax.adam(0.5), Pruner(allocation="global"), schedule, nested=False)
    trajectory, states, _ = run(tx, params, tx.init(params), 30)
    weights, kept = arrays(trajectory), arrays(states.mask)
    number = np.array([sum(int((~kept[path][i]).sum()) for path in PATHS) for i in range(30)])
    sparse = np.array([4 <= i < 9 or 14 <= i < 19 or i >= 24 for i in range(30)])
    np.testing.assert_array_equal(number, np.where(sparse, round(0.75 * 180), 0))
    for path in PATHS:
        gone = ~kept[path][8]
        for tree in (weights, *moments(states.inner, params)):
            np.testing.assert_array_equal(tree[path][9][gone], 0)  # as the dense phase begins
            assert np.all(tree[path][10][gone] != 0)
        assert np.all(kept[path][9])
        assert np.any(kept[path][14] & gone)  # some of them stay


def test_falling_sparsities_need_masks_that_are_not_nested():
    schedule = pruning.alternating(0.5, begin=0, end=4, sparse=1)
    with pytest.raises(ValueError, match=r"falls from 0\.5 to 0\.0 at step 1.*nested=False"):
        pruning.optimizer(optax.sgd(0.1), Pruner(), schedule)
