"""Exact counts, for every granularity with every allocation and with every criterion."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prunejax import masks
from prunejax.pruning import ALLOCATIONS, CRITERIA, GRANULARITIES, Evidence, Pruner, prune

SHAPES = {"Conv_0": (3, 3, 4, 8), "Conv_1": (1, 1, 8, 4), "Dense_0": (8, 12), "Dense_1": (12, 4)}
TABLE = {"Conv_0": 0.3, "Conv_*": 0.9, "*": 0.05}
ALL = [*GRANULARITIES, "2:4", "block4x2"]
# The axes that a unit spans; blocks and N:M below.
AXES = {"kernel": (0, 1), "filter": (0, 1, 2), "channel": (0, 1, 3), "row": (1,), "column": (0,)}


def network(seed):
    """Weights with many ties."""
    rng = np.random.default_rng(seed)
    params = {path: rng.normal(size=shape).round(1) for path, shape in SHAPES.items()}
    params["bias"] = rng.normal(size=4)
    return {path: jnp.asarray(leaf, jnp.float32) for path, leaf in params.items()}


NETWORKS = [network(seed) for seed in range(3)]


def units(mask, path, granularity):
    """The mask's units as a flat array, checked to be whole; None where the layer has none."""
    shape = SHAPES[path]
    full = np.broadcast_to(np.asarray(mask[path]), shape)
    if granularity in AXES:
        if (len(shape) == 2) != (granularity in ("row", "column")):
            return None
        low, high = (f(full, axis=AXES[granularity]) for f in (np.min, np.max))
        np.testing.assert_array_equal(low, high)
        return low.ravel()
    if granularity.startswith("block"):
        rows, columns = map(int, granularity.removeprefix("block").split("x"))
        tiles = full.reshape(*shape[:-2], shape[-2] // rows, rows, shape[-1] // columns, columns)
        np.testing.assert_array_equal(tiles.min((-3, -1)), tiles.max((-3, -1)))
        return tiles.min((-3, -1)).ravel()
    return full.ravel()


def expected_total(granularity, allocation, guard, sparsity, sizes):
    total = round(sparsity * sum(sizes))
    if allocation == "uniform":
        total = sum(round(sparsity * n) for n in sizes)
    return min(total, sum(sizes) - len(sizes)) if guard else total


# N:M gives all layers one density.
PAIRS = [
    (granularity, allocation)
    for granularity in ALL
    for allocation in [*ALLOCATIONS, "table"]
    if ":" not in granularity or allocation in ("uniform", "global")
]


@pytest.mark.parametrize(("granularity", "allocation"), PAIRS)
@settings(deadline=None, max_examples=1)
@given(
    guard=st.booleans(),
    shares=st.lists(st.floats(0, 1, exclude_max=True), min_size=3, max_size=3),
)
@example(guard=True, shares=[0.3, 0.8, 0.98])
@example(guard=False, shares=[0.3, 0.8, 0.98])
def test_counts_are_exact_and_masks_nested(granularity, allocation, guard, shares):
    is_ranked = ":" in granularity
    if is_ranked:
        keep, group = map(int, granularity.split(":"))
        shares = [1 - keep / group]
    chosen = TABLE if allocation == "table" else allocation
    pruner = Pruner(granularity=granularity, allocation=chosen, guard=guard)
    mask = pruner.initial(NETWORKS[0])
    whole = {path: units(mask, path, granularity) for path in SHAPES}
    sizes = [len(u) for u in whole.values() if u is not None]
    paths = [path for path, u in whole.items() if u is not None]
    assert pruner.paths(NETWORKS[0]) == tuple(paths)
    if allocation == "table":
        densities = {"Conv_0": 0.3, "Conv_1": 0.9, "Dense_0": 0.05, "Dense_1": 0.05}
        most = sum((1 - densities[p]) * n for p, n in zip(paths, sizes, strict=True)) / sum(sizes)
        shares = [share * most for share in shares]
        used = {pattern: TABLE[pattern] for pattern in TABLE if pattern != "*"}
        if not {"Conv_0", "Conv_1"} <= {*paths}:
            used = {}
        if {*paths} - {"Conv_0", "Conv_1"}:
            used["*"] = TABLE["*"]
        pruner = Pruner(granularity=granularity, allocation=used, guard=guard)

    for params, sparsity in zip(NETWORKS, sorted(shares), strict=False):
        later = prune(params, sparsity, pruner, current=mask)
        masks.validate(params, later)
        gone = [~units(later, path, granularity) for path in paths]
        total = expected_total(granularity, allocation, guard, sparsity, sizes)
        assert sum(int(g.sum()) for g in gone) == total
        if allocation == "uniform" and not guard:
            assert [int(g.sum()) for g in gone] == [round(sparsity * n) for n in sizes]
        if guard:
            assert all(not np.all(g) for g in gone)
        for path in params:
            assert not np.any(np.asarray(later[path]) & ~np.asarray(mask[path]))
            assert path in paths or np.asarray(later[path]).shape == ()
        if is_ranked:
            for path in paths:
                groups = np.asarray(later[path]).reshape(
                    *SHAPES[path][:-2], -1, group, SHAPES[path][-1]
                )
                np.testing.assert_array_equal(groups.sum(-2), keep)
        mask = later


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_the_guard_decides_whether_a_layer_collapses(allocation):
    # The first layer is a thousand times smaller in every way.
    params = {"a": jnp.full((2, 2), 1e-3), "b": jnp.arange(1.0, 1001).reshape(10, 100)}
    kept = {}
    for guard in (True, False):
        mask = prune(params, 0.999, Pruner(allocation=allocation, guard=guard))
        kept[guard] = [int(np.sum(mask[path])) for path in params]
    number = 1004 - round(0.999 * 1004)
    assert min(kept[True]) >= 1
    assert sum(kept[True]) == max(2, number)
    if allocation in ("uniform", "global"):
        assert kept[False] == [0, 1]
    assert sum(kept[False]) == number


def test_the_guard_keeps_the_best_unit():
    params = {"a": jnp.array([[0.1, 0.3, 0.3, 0.2]]), "b": jnp.array([[5.0, 6.0, 7.0, 8.0]])}
    mask = prune(params, 0.5, Pruner(allocation="global"))
    np.testing.assert_array_equal(mask["a"], [[False, False, True, False]])  # the last of equals
    np.testing.assert_array_equal(mask["b"], [[False, True, True, True]])
    assert math.prod(mask["a"].shape) == 4


# -- every criterion -------------------------------------------------------------------------------

# They score outputs: units of inputs are all the same to them.
OF_OUTPUTS = {
    "geometric_median", "norm_scale", "expected_abs", "hrank", "kl", "cka", "pls_vip"
}  # fmt: skip
OF_INPUTS = {"channel", "row", "2:4"}


def apply(variables, images):
    """Logits of images `[B, 1, 2, 4]`, by the weights of `SHAPES`, each but the last scaled."""
    x, params = images, variables["params"]
    for path in ("Conv_0", "Conv_1", "Dense_0"):
        if path.startswith("Conv"):
            x = jax.lax.conv_general_dilated(
                x, params[path], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        else:
            x = x.reshape(len(x), -1) @ params[path]
        x = jax.nn.relu(x * params["scales"][path])
    return x @ params["Dense_1"]


def loss(params, batch):
    images, labels = batch
    log_p = jax.nn.log_softmax(apply({"params": params}, images))
    return -log_p[jnp.arange(len(labels)), labels].mean()


@functools.cache
def evidenced():
    """Parameters, and all that a criterion may ask for."""
    rng = np.random.default_rng(0)
    array = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    params = {path: array(*shape) for path, shape in SHAPES.items()}
    params["scales"] = {path: array(SHAPES[path][-1]) for path in SHAPES if path != "Dense_1"}
    images = jax.nn.sigmoid(array(6, 1, 2, 4))
    return params, Evidence(
        loss=loss,
        batches=((images, jnp.arange(6) % 4),),
        network=apply,
        variables={},
        input_shape=(1, 2, 4),
        scores=jax.tree.map(lambda w: array(*w.shape), params),
    )


def scored_once(name):
    """The criterion, which looks at the same weights of the same network only once."""
    own = CRITERIA[name]
    known = {}

    def score(params, evidence):
        if evidence.paths not in known:
            known[evidence.paths] = own.score(params, evidence)
        return known[evidence.paths]

    return dataclasses.replace(own, score=score)


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_removes_exact_numbers_of_all_units_it_tells_apart(name):
    params, evidence = evidenced()
    criterion = scored_once(name)
    for granularity in ALL:
        sparsity = 0.5 if ":" in granularity else 0.4
        for allocation in (*ALLOCATIONS, "table"):
            if (granularity, allocation) not in PAIRS:
                continue
            # The last layer's outputs are the classes.
            chosen = {"*": 1 - sparsity} if allocation == "table" else allocation
            options = {"exclude": "Dense_1", "guard": False, "allocation": chosen}
            pruner = Pruner(criterion, granularity, **options)
            if name in OF_OUTPUTS and granularity in OF_INPUTS:
                with pytest.raises(ValueError, match=r"gives all inputs of .* the same score"):
                    prune(params, sparsity, pruner, evidence=evidence)
                continue
            mask = prune(params, sparsity, pruner, evidence=evidence)
            gone = [~units(mask, path, granularity) for path in pruner.paths(params)]
            if allocation not in ("uniform", "table"):
                gone = [np.concatenate(gone)]
            assert [g.sum() for g in gone] == [round(sparsity * g.size) for g in gone]
