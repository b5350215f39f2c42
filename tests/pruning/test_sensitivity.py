"""Densities of equal accuracy, where they are known."""

import numpy as np
import pytest

from prunejax.pruning import Pruner, sensitivity


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
