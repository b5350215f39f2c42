"""Which weights go together: units by numpy, N:M and block laws, aggregations, misfits."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunejax import masks, pruning
from prunejax.pruning import Pruner, prune

rng = np.random.default_rng(0)
CONV, DENSE = rng.normal(size=(3, 2, 4, 8)), rng.normal(size=(8, 12))


def kept(leaf, sparsity, granularity, **options):
    mask = prune(
        {"w": jnp.asarray(leaf, jnp.float32)}, sparsity, Pruner(granularity=granularity, **options)
    )
    masks.validate({"w": leaf}, mask)
    return np.asarray(mask["w"])


def lowest(scores, count):
    keep = np.ones(scores.size, bool)
    keep[np.argsort(scores.ravel(), kind="stable")[:count]] = False
    return keep.reshape(scores.shape)


SLICES = {"kernel": (0, 1), "filter": (0, 1, 2), "channel": (0, 1, 3), "row": (1,), "column": (0,)}
BY_NUMPY = {
    "mean": np.mean,
    "sum": np.sum,
    "max": np.max,
    "l2": lambda x, **k: np.sqrt(np.sum(x**2, **k)),
    "first": lambda x, axis, keepdims: x[
        tuple(slice(1 if number in axis else None) for number in range(x.ndim))
    ],
}


@pytest.mark.parametrize("aggregate", BY_NUMPY)
@pytest.mark.parametrize("name", SLICES)
def test_slices_go_by_their_aggregated_magnitude(name, aggregate):
    leaf = DENSE if name in ("row", "column") else CONV
    scores = BY_NUMPY[aggregate](np.abs(leaf), axis=SLICES[name], keepdims=True)
    expected = lowest(scores, round(0.4 * scores.size))
    found = kept(leaf, 0.4, name, aggregate=aggregate)
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


def test_aggregates_are_not_all_the_same():
    found = [kept(CONV, 0.5, "kernel", aggregate=name) for name in pruning.AGGREGATES]
    different = [np.any(a != b) for a, b in itertools.combinations(found, 2)]
    assert sum(different) == 9  # all but the sum and the mean, of units of one size


def test_one_weight_is_its_own_aggregate():
    params = {"w": jnp.asarray(DENSE, jnp.float32)}
    for name in pruning.AGGREGATES:
        np.testing.assert_array_equal(
            kept(DENSE, 0.5, "weight", aggregate=name), prune(params, 0.5)["w"]
        )


# -- N:M -------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(
    values=st.lists(st.integers(-3, 3), min_size=48, max_size=48),
    ratio=st.sampled_from([(1, 2), (1, 4), (2, 4), (3, 4)]),
    allocation=st.sampled_from(["uniform", "global"]),
    guard=st.booleans(),
)
def test_of_every_m_successive_inputs_the_n_largest_are_kept(values, ratio, allocation, guard):
    (n, m), leaf = ratio, np.array(values).reshape(8, 6)
    found = kept(leaf, 1 - n / m, f"{n}:{m}", allocation=allocation, guard=guard)
    assert found.shape == (8, 6)
    for group, output in itertools.product(range(8 // m), range(6)):
        chosen = slice(group * m, (group + 1) * m), output
        np.testing.assert_array_equal(found[chosen], lowest(np.abs(leaf[chosen]), m - n))


def test_the_inputs_of_a_convolution_are_its_channels_at_one_position():
    found = kept(CONV, 0.5, "2:4")
    for i, j, o in np.ndindex(3, 2, 8):
        np.testing.assert_array_equal(found[i, j, :, o], lowest(np.abs(CONV[i, j, :, o]), 2))


def test_the_law_of_n_of_m_holds_also_where_more_is_gone_already():
    params = {"w": jnp.arange(1.0, 17).reshape(8, 2)}
    current = {"w": jnp.ones((8, 2), bool).at[1:4, 0].set(False)}
    mask = prune(params, 0.5, Pruner(granularity="2:4"), current=current)
    np.testing.assert_array_equal(mask["w"].reshape(2, 4, 2).sum(1), [[1, 2], [2, 2]])
    assert not np.any(mask["w"] & ~current["w"])


@pytest.mark.parametrize(
    ("leaf", "sparsity", "message"),
    [
        (DENSE, 0.4, r"sparsity is 0\.4; granularity '2:4' ends at 0\.5"),
        (DENSE, 0.75, r"sparsity is 0\.75; granularity '2:4' ends at 0\.5"),
        (DENSE[:6], 0.5, r"multiple of 4 inputs, but 'w' of shape \(6, 12\) has 6; exclude it"),
        (CONV[:, :, :1], 0.5, r"'w' of shape \(3, 2, 1, 8\) has 1"),
    ],
)
def test_what_cannot_be_n_of_m_is_named(leaf, sparsity, message):
    with pytest.raises(ValueError, match=message):
        kept(leaf, sparsity, "2:4")


def test_a_schedule_that_n_of_m_cannot_follow_fails_before_the_first_step():
    import optax

    pruner = Pruner(granularity="2:4")
    for schedule, sparsity in (
        (pruning.cubic(0.4, end=10, frequency=5), 0.4),
        (pruning.iterative((1, 2, 4), frequency=5), 0.75),
    ):
        tx = pruning.optimizer(optax.sgd(0.1), pruner, schedule)
        with pytest.raises(ValueError, match=f"sparsity is {sparsity}; granularity '2:4' ends at"):
            tx.init({"w": jnp.ones((4, 4))})


@settings(max_examples=12, deadline=None)
@given(
    values=st.permutations(range(1, 49)),
    ratio=st.sampled_from([(1, 2), (1, 4), (2, 4), (3, 4)]),
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=4),
)
def test_on_the_way_no_group_loses_its_next_weight_before_all_have_lost_as_many(
    values, ratio, shares
):
    (n, m), leaf = ratio, np.float32(values).reshape(8, 6)
    pruner, params = Pruner(granularity=f"{n}:{m}"), {"w": jnp.array(leaf)}
    # By the rank within the group, then by magnitude.
    groups = leaf.reshape(8 // m, m, 6)
    ranks = np.argsort(np.argsort(groups, axis=1), axis=1).reshape(8, 6)
    order = np.lexsort((leaf.ravel(), ranks.ravel()))
    mask = pruner.initial(params)
    for share in [*sorted(shares), 1.0]:
        removal = pruner.removal(params, share * (1 - n / m), on_the_way=True)
        mask = pruner.mask(params, mask, removal)
        expected = np.ones(48, bool)
        expected[order[: round(share * (1 - n / m) * 48)]] = False
        np.testing.assert_array_equal(mask["w"].ravel(), expected)


def test_weights_that_change_on_the_way_leave_masks_nested_and_exact():
    rng, pruner = np.random.default_rng(0), Pruner(granularity="2:4", allocation="global")
    params = {"a": jnp.ones((8, 6)), "b": jnp.ones((4, 10))}
    mask = pruner.initial(params)
    for percent in range(0, 51, 2):
        params = {k: jnp.asarray(rng.normal(size=w.shape), "f4") for k, w in params.items()}
        removal = pruner.removal(params, percent / 100, on_the_way=True)
        later = pruner.mask(params, mask, removal)
        gone = sum(int((~keep).sum()) for keep in later.values())
        assert gone == round(percent / 100 * 88)
        assert not any(np.any(later[k] & ~mask[k]) for k in mask)
        mask = later
    for keep in mask.values():
        np.testing.assert_array_equal(keep.reshape(-1, 4, keep.shape[1]).sum(1), 2)


# -- blocks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("leaf", "name", "size"),
    [(DENSE, "block4x4", (4, 4)), (DENSE, "block2x3", (2, 3)), (CONV, "block4x2", (4, 2))],
)
def test_blocks_go_whole_by_their_mean(leaf, name, size):
    *lead, inputs, outputs = leaf.shape
    rows, columns = size
    tiles = np.abs(leaf).reshape(*lead, inputs // rows, rows, outputs // columns, columns)
    scores = tiles.mean(axis=(-3, -1))
    expected = lowest(scores, round(0.5 * scores.size))
    expected = np.repeat(np.repeat(expected, rows, axis=-2), columns, axis=-1)
    found = kept(leaf, 0.5, name)
    assert found.shape == leaf.shape
    np.testing.assert_array_equal(found, expected)


# -- misfits ---------------------------------------------------------------------------------------

MIXED = {"conv": jnp.ones((3, 3, 4, 8)), "dense": jnp.ones((8, 6)), "bias": jnp.ones(6)}


@pytest.mark.parametrize(
    ("granularity", "touched"),
    [
        *((name, ("conv",)) for name in ("kernel", "filter", "channel")),
        *((name, ("dense",)) for name in ("row", "column")),
        *((name, ("conv", "dense")) for name in ("weight", "2:4", "block2x2")),
    ],
)
def test_weights_without_such_units_are_untouched(granularity, touched):
    assert Pruner(granularity=granularity).paths(MIXED) == touched
    mask = prune(MIXED, 0.5, Pruner(granularity=granularity))
    assert {path for path, leaf in mask.items() if not np.all(leaf)} == {*touched}
    assert all(mask[path].shape == () for path in MIXED if path not in touched)


@pytest.mark.parametrize(
    ("granularity", "include", "message"),
    [
        ("filter", ["conv", "dense"], "granularity is 'filter', but 'dense' has rank 2"),
        ("row", ["conv", "dense"], "granularity is 'row', but 'conv' has rank 4"),
        *(
            ("block4x4", include, r"multiples of \(4, 4\).*'dense' has shape \(8, 6\); exclude it")
            for include in (["dense"], ["*"])  # also where others fit
        ),
        ("block3x3", ["conv"], r"multiples of \(3, 3\).*'conv' has shape \(3, 3, 4, 8\)"),
        ("2:4", ["*"], r"multiple of 4 inputs, but 'odd' of shape \(6, 8\) has 6; exclude it"),
        ("filter", ["d*"], "granularity is 'filter', but 'dense' has rank 2"),  # nothing else there
    ],
)
def test_weights_that_should_have_such_units_are_named(granularity, include, message):
    params = {**MIXED, "odd": jnp.ones((6, 8))} if granularity == "2:4" else MIXED
    with pytest.raises(ValueError, match=message):
        prune(params, 0.5, Pruner(granularity=granularity, include=include))


def test_weights_that_blocks_do_not_divide_can_be_excluded():
    mask = prune(MIXED, 0.5, Pruner(granularity="block4x4", exclude="dense"))
    assert masks.kept(MIXED, mask) == {"bias": 6, "conv": 144, "dense": 48}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": "4:2"}, "granularity is '4:2'; N:M needs 0 < N < M"),
        ({"granularity": "4:4"}, "N:M needs 0 < N < M"),
        ({"granularity": "0:4"}, "N:M needs 0 < N < M"),
        ({"granularity": "block0x4"}, "granularity is 'block0x4'"),
        ({"granularity": "kernels"}, r"Unknown granularity 'kernels'\. Did you mean 'kernel'\?"),
        ({"granularity": "2:4:8"}, "Unknown granularity '2:4:8'.*block4x4"),
        ({"aggregate": "l1"}, "Unknown aggregate 'l1'"),
        ({"granularity": "2:4", "allocation": "erk"}, "'uniform' or 'global', not 'erk'"),
    ],
)
def test_impossible_choices_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Pruner(**options)
