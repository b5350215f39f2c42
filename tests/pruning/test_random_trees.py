"""Exact counts, exact choices and nesting on random trees: any depth, ranks, shapes and ties."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prunejax import masks, trees
from prunejax.pruning import Pruner, prune

# By granularity the ranks it applies to and the axes that its units span.
UNITS = {
    "weight": (range(2, 9), lambda rank: ()),
    "filter": ((3, 4, 5), lambda rank: tuple(range(rank - 1))),
    "column": ((2,), lambda rank: (0,)),
}
# A pool, for each new shape is compiled.
SHAPES = [(), (3,), (2, 3), (4, 1), (2, 2, 3), (1, 2, 1, 4)]
# The last two axes of weights are multiples of four.
SHAPES_OF_FOURS = [(), (3,), (4, 8), (8, 4), (2, 4, 4), (1, 2, 4, 4)]


def trees_of(shapes):
    leaves = st.tuples(st.sampled_from(shapes), st.integers(0, 2**32 - 1))
    return st.recursive(
        st.dictionaries(st.sampled_from(["kernel", "bias", "w", "scale"]), leaves, min_size=1),
        lambda children: st.dictionaries(st.sampled_from(["a", "b", "c"]), children, min_size=1),
        max_leaves=4,
    )


def numbers(tree):
    """Small integers, so that ties are many and sums exact."""
    if isinstance(tree, dict):
        return {name: numbers(child) for name, child in tree.items()}
    shape, seed = tree
    return jnp.asarray(np.random.default_rng(seed).integers(-3, 4, shape), jnp.float32)


def lowest(scores, count):
    """Which of the flat scores go: the lowest, ties by index."""
    gone = np.zeros(len(scores), bool)
    gone[np.argsort(scores, kind="stable")[:count]] = True
    return gone


def weights_of(leaves, ranks=range(2, 9)):
    return [
        path
        for path, leaf in leaves.items()
        if leaf.ndim in ranks and path.split("/")[-1] in ("kernel", "w")
    ]


@settings(max_examples=15, deadline=None)
@given(
    shapes=trees_of(SHAPES),
    granularity=st.sampled_from(list(UNITS)),
    allocation=st.sampled_from(["uniform", "global"]),
    shares=st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=3).map(sorted),
)
def test_the_lowest_go_exactly_and_stay_gone(shapes, granularity, allocation, shares):
    params = numbers(shapes)
    pruner = Pruner("magnitude", granularity, allocation, aggregate="sum", guard=False)
    ranks, axes = UNITS[granularity]
    leaves = {path: np.asarray(leaf) for path, leaf in trees.flatten(params).items()}
    weights = weights_of(leaves, ranks)
    if not weights:
        with pytest.raises(ValueError, match=r"weights|granularity"):
            prune(params, shares[0], pruner)
        return
    units = {p: np.abs(leaves[p]).sum(axis=axes(leaves[p].ndim), keepdims=True) for p in weights}
    sizes = [units[path].size for path in weights]

    mask = None
    for sparsity in shares:
        later = prune(params, sparsity, pruner, current=mask)
        masks.validate(params, later)
        flat = trees.flatten(later)
        gone = [~np.asarray(flat[path]).ravel() for path in weights]
        scores = [units[path].ravel() for path in weights]
        # The weights stay the same, so that each mask is also what one shot would give.
        if allocation == "uniform":
            expected = [lowest(s, round(sparsity * len(s))) for s in scores]
            np.testing.assert_array_equal(np.concatenate(gone), np.concatenate(expected))
        else:
            expected = lowest(np.concatenate(scores), round(sparsity * sum(sizes)))
            np.testing.assert_array_equal(np.concatenate(gone), expected)
        for path, leaf in flat.items():
            if path in weights:
                assert leaf.shape == units[path].shape
            else:
                assert leaf.shape == ()
                assert leaf
            if mask is not None:
                assert not np.any(leaf & ~trees.flatten(mask)[path])
        mask = later


@settings(max_examples=10, deadline=None)
@given(shapes=trees_of(SHAPES_OF_FOURS), granularity=st.sampled_from(["1:2", "2:4", "1:4"]))
def test_of_every_group_of_inputs_the_best_stay(shapes, granularity):
    keep, group = map(int, granularity.split(":"))
    params = numbers(shapes)
    leaves = {path: np.asarray(leaf) for path, leaf in trees.flatten(params).items()}
    assume(weights_of(leaves))
    mask = trees.flatten(prune(params, 1 - keep / group, Pruner(granularity=granularity)))
    for path in weights_of(leaves):
        groups, kept = (
            np.moveaxis(of, -2, -1).reshape(-1, group) for of in (np.abs(leaves[path]), mask[path])
        )
        for scores, left in zip(groups, kept, strict=True):
            np.testing.assert_array_equal(left, ~lowest(scores, group - keep))


@settings(max_examples=10, deadline=None)
@given(
    shapes=trees_of(SHAPES_OF_FOURS),
    sides=st.sampled_from([(2, 1), (2, 4), (4, 4)]),
    sparsity=st.floats(0, 1, exclude_max=True),
)
def test_blocks_go_whole_the_lowest_first_and_the_guard_keeps_one(shapes, sides, sparsity):
    rows, columns = sides
    params = numbers(shapes)
    leaves = {path: np.asarray(leaf) for path, leaf in trees.flatten(params).items()}
    weights = weights_of(leaves)
    assume(weights)

    def tiles(leaf):
        inputs, outputs = leaf.shape[-2:]
        split = leaf.reshape(-1, inputs // rows, rows, outputs // columns, columns)
        return split.swapaxes(2, 3).reshape(-1, rows * columns)

    for guard in (False, True):
        pruner = Pruner("magnitude", f"block{rows}x{columns}", aggregate="sum", guard=guard)
        mask = trees.flatten(prune(params, sparsity, pruner))
        gone = []
        for path in weights:
            kept = tiles(np.asarray(mask[path]))
            assert (kept == kept[:, :1]).all()
            gone.append(~kept[:, 0])
        scores = [np.abs(tiles(leaves[path])).sum(axis=1) for path in weights]
        numbers_gone = [round(sparsity * len(of)) for of in scores]
        if guard:
            assert all(not of.all() for of in gone)
            most = sum(len(of) - 1 for of in scores)
            assert sum(of.sum() for of in gone) == min(sum(numbers_gone), most)
        else:
            expected = [lowest(of, n) for of, n in zip(scores, numbers_gone, strict=True)]
            np.testing.assert_array_equal(np.concatenate(gone), np.concatenate(expected))
