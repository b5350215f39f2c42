"""Densities of equal accuracy, and the accuracies behind them, where they are known."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import masks
from prunejax.pruning import Evidence, Pruner, prune, sensitivity


def linear(slopes, densities):
    """A_l(d) = 1 - c_l (1 - d)."""
    return {path: {d: 1 - c * (1 - d) for d in densities} for path, c in slopes.items()}


@pytest.mark.parametrize("density", [0.5, 0.75, 0.9, 1.0])
def test_linear_curves_meet_at_one_level(density):
    slopes = {"a": 0.2, "b": 0.4, "c": 0.8}
    table = linear(slopes, [0.0001, 0.1, 0.35, 0.8, 1.0])
    found = sensitivity.densities(table, dict.fromkeys(slopes, 1000), density)
    # 1 - d_l = (1 - a) / c_l, and the mean of d_l is the density.
    fall = 3 * (1 - density) / sum(1 / c for c in slopes.values())
    assert found == pytest.approx({path: 1 - fall / c for path, c in slopes.items()}, abs=1e-9)


def test_larger_layers_count_by_their_size():
    table = linear({"a": 0.5, "b": 0.5}, [0.01, 1])
    found = sensitivity.densities(table, {"a": 10, "b": 990}, 0.3)
    assert found == pytest.approx({"a": 0.3, "b": 0.3})


def test_a_layer_that_does_not_matter_goes_first():
    table = {"useless": {0.1: 0.9, 0.5: 0.9, 1: 0.9}, "vital": {0.1: 0.2, 1: 0.9}}
    sizes = {"useless": 100, "vital": 100}
    assert sensitivity.densities(table, sizes, 0.55) == pytest.approx({"useless": 0.1, "vital": 1})
    # On the jump between dense and useless the total is met all the same.
    found = sensitivity.densities(table, sizes, 0.8)
    assert sum(found.values()) == pytest.approx(1.6)
    assert found["vital"] == pytest.approx(1)


def test_noise_does_not_make_a_curve_fall():
    noisy = {"a": {0.2: 0.5, 0.4: 0.8, 0.6: 0.7, 1: 0.9}, "b": {0.2: 0.5, 1: 0.9}}
    smooth = {"a": {0.2: 0.5, 0.4: 0.8, 0.6: 0.8, 1: 0.9}, "b": {0.2: 0.5, 1: 0.9}}
    sizes = {"a": 30, "b": 70}
    for density in np.linspace(0.2, 1, 9):
        first, second = (sensitivity.densities(t, sizes, density) for t in (noisy, smooth))
        assert first == pytest.approx(second)
        assert 0.3 * first["a"] + 0.7 * first["b"] == pytest.approx(density)


def test_the_result_is_an_allocation():
    table = linear({"a": 0.2, "b": 0.4}, [0.01, 1])
    found = sensitivity.densities(table, {"a": 100, "b": 100}, 0.7)
    assert found == pytest.approx({"a": 0.6, "b": 0.8})
    params = {path: np.ones((10, 10)) for path in table}
    assert Pruner(allocation=found).removal(params, 0.3) == {("a",): 40, ("b",): 20}


@pytest.mark.parametrize(
    ("table", "density", "message"),
    [
        ({"a": {0.5: 0.5, 1: 1}}, 0.4, r"density is 0\.4; .* from 0\.5 to 1"),
        ({"a": {0.5: 0.5, 1: 1}}, 1.2, r"density is 1\.2"),
        ({"a": {0.5: 0.5}}, 0.6, r"densities \[0\.5\] for 'a'"),
        ({"a": {0: 0.5, 1: 1}}, 0.6, r"densities \[0\.0, 1\.0\] for 'a'"),
        ({"a": {}}, 0.6, "for 'a'"),
        ({"b": {1: 1}}, 0.6, r"differ in the layers \['a', 'b'\]"),
    ],
)
def test_tables_that_make_no_sense_are_named(table, density, message):
    with pytest.raises(ValueError, match=message):
        sensitivity.densities(table, {"a": 10}, density)


def test_the_lowest_density_measured_is_one_that_can_be_had():
    table = {"a": {0.1: 0.5, 1: 1.0}, "b": {0.1: 0.5, 1: 1.0}}
    assert 0.1 * 3 + 0.1 * 6 > 0.1 * 9  # in floating point
    found = sensitivity.densities(table, {"a": 3, "b": 6}, 0.1)
    assert found == pytest.approx({"a": 0.1, "b": 0.1})


# -- measured tables -------------------------------------------------------------------------------

SIZE = 10


def two_layers():
    """Of n images the i-th is right as long as weight i of "vital" is; "useless" moves nothing."""
    rng = np.random.default_rng(0)
    weights = {name: rng.permutation(SIZE).reshape(SIZE, 1) + 1.0 for name in ("useless", "vital")}
    return {name: jnp.asarray(weight, jnp.float32) for name, weight in weights.items()}


def accuracy(params):
    same_for_both = np.asarray(params["useless"]).sum()
    logits = same_for_both + np.stack([np.zeros(SIZE), np.asarray(params["vital"])[:, 0]], axis=1)
    return np.mean(logits.argmax(axis=1) == 1)  # of equal ones the first


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_a_table_that_is_known(criterion):
    table = sensitivity.measure(two_layers(), Pruner(criterion), (0.8, 0.3, 0.54), accuracy)
    # Each weight of the vital layer carries one image, whichever they are: A(d) = d, in tenths.
    assert table["vital"] == pytest.approx({0.3: 0.3, 0.54: 0.5, 0.8: 0.8, 1.0: 1.0})
    assert table["useless"] == dict.fromkeys((0.3, 0.54, 0.8, 1.0), 1.0)


def test_what_is_measured_is_one_layer_pruned_by_the_pruners_criterion():
    rng = np.random.default_rng(1)
    params = {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32)
        for name, shape in {"a": (3, 3, 2, 8), "b": (3, 3, 8, 6), "head": (6, 4)}.items()
    }
    gradient = {name: jnp.asarray(rng.normal(size=w.shape)) for name, w in params.items()}
    loss = lambda p, _: sum(jnp.vdot(gradient[name], p[name]) for name in p)  # noqa: E731
    evidence = Evidence(loss=loss, batches=(0,))
    pruner = Pruner("taylor", granularity="filter", allocation="global")
    seen = []

    def accuracy(params):
        seen.append({name: np.asarray(w) for name, w in params.items()})
        return float(len(seen))

    table = sensitivity.measure(params, pruner, [0.5], accuracy, evidence=evidence)

    # A dense layer has no filters; the dense network is looked at once, and first.
    assert table == {"a": {0.5: 2.0, 1.0: 1.0}, "b": {0.5: 3.0, 1.0: 1.0}}
    for name, pruned in zip(("a", "b"), seen[1:], strict=True):
        effect = np.square((params[name] * gradient[name]).sum(axis=(0, 1, 2)))
        kept = effect >= np.median(effect)
        np.testing.assert_array_equal(pruned[name], params[name] * kept)
        for other in params.keys() - {name}:
            np.testing.assert_array_equal(pruned[other], params[other])


def test_measured_densities_protect_the_vital_layer():
    params = two_layers()
    table = sensitivity.measure(params, Pruner(), (0.1, 0.5), accuracy)
    units = {path: layer.units for path, layer in Pruner().layers(params).items()}
    allocation = sensitivity.densities(table, units, 0.55)
    assert allocation == pytest.approx({"useless": 0.1, "vital": 1.0})
    pruner = dataclasses.replace(Pruner(), allocation=allocation)
    assert accuracy(masks.apply(params, prune(params, 0.45, pruner))) == 1.0
    assert accuracy(masks.apply(params, prune(params, 0.45))) == pytest.approx(0.6)  # uniform


@pytest.mark.parametrize(
    ("options", "densities", "message"),
    [
        ({}, (), r"densities is \(\)"),
        ({}, (0.0, 0.5), r"densities is \(0\.0, 0\.5\)"),
        ({}, (0.5, 1.5), "densities is"),
        ({"include": ("conv",)}, (0.5,), "conv"),
        ({"criterion": "snip"}, (0.5,), "criterion 'snip' needs loss and batches"),
        ({"granularity": "5:10"}, (0.3,), "0.7"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(options, densities, message):
    def accuracy(params):
        raise AssertionError

    with pytest.raises(ValueError, match=message):
        sensitivity.measure(two_layers(), Pruner(**options), densities, accuracy)
