"""How many units each layer loses: golden vectors, closed forms, exact sums, the guard."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunejax import pruning
from prunejax.pruning import Pruner, allocation
from prunejax.pruning.allocation import Layer

CONVS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


def vgg16():
    inputs = (3, *CONVS[:-1])
    shapes = [(3, 3, i, o) for i, o in zip(inputs, CONVS, strict=True)]
    return dict(enumerate([*shapes, (2048, 256), (256, 256), (256, 10)]))


def resnet18():
    shapes = [(3, 3, 3, 64)] + 4 * [(3, 3, 64, 64)]
    for width in (128, 256, 512):
        shapes += [(1, 1, width // 2, width), (3, 3, width // 2, width)] + 3 * [
            (3, 3, width, width)
        ]
    return dict(enumerate([*shapes, (512, 10)]))


# Densities of the strategies published with HARP, to four digits; they are shares of whole weights,
# which shows in layers of some thousand weights at the lowest density: 101 / 1728 = .0584.
# fmt: off
GOLDEN = {
    ("vgg16", 0.1): [1, .5180, .3827, .2532, .1885, .1252, .1252, .0935,
                     *5 * [.0622], .6263, 1, 1],
    ("vgg16", 0.01): [.5868, .0505, .0373, .0247, .0184, .0122, .0122, .0091,
                      *5 * [.0061], .0610, .1085, 1],
    ("vgg16", 0.001): [.0584, .0050, .0037, .0024, .0018, .0012, .0012, .0009,
                       *5 * [.0006], .0061, .0108, .1434],
    ("resnet18", 0.1): [1, *4 * [.4797], 1, .3544, *3 * [.2345], 1, .1745,
                        *3 * [.1159], .7752, .0866, *3 * [.0576], 1],
}
# fmt: on
NETWORKS = {"vgg16": vgg16(), "resnet18": resnet18()}


@pytest.mark.parametrize(("network", "density"), GOLDEN)
def test_erk_has_the_published_densities(network, density):
    shapes = NETWORKS[network]
    found = allocation.erk_densities(shapes, density)
    sizes = [math.prod(shape) for shape in shapes.values()]
    kept = [d * n for d, n in zip(found.values(), sizes, strict=True)]
    assert sum(kept) == pytest.approx(density * sum(sizes), rel=1e-12)
    whole = [round(k) / n for k, n in zip(kept, sizes, strict=True)]
    np.testing.assert_allclose(whole, GOLDEN[network, density], atol=5.0e-5)
    # So do the exact counts, whose total is that of the sparsity.
    groups = allocation.erk(
        {str(i): Layer(math.prod(s), s) for i, s in shapes.items()}, 1 - density
    )
    left = [1 - count / n for (_, count), n in zip(groups, sizes, strict=True)]
    np.testing.assert_allclose(left, GOLDEN[network, density], atol=5.0e-5)
    assert sum(count for _, count in groups) == round((1 - density) * sum(sizes))


def test_resnet18_has_the_published_number_of_weights():
    assert sum(map(math.prod, NETWORKS["resnet18"].values())) == 11_164_352


def test_igq_has_one_pressure_in_all_layers():
    sizes = {"small": 100, "large": 10_000, "twin": 100}
    for density in (0.01, 0.3, 0.99):
        found = allocation.igq_densities(sizes, density)
        pressures = [(1 / d - 1) / sizes[path] for path, d in found.items()]  # f of d = 1/(1 + f n)
        np.testing.assert_allclose(pressures, pressures[0], rtol=1e-9)
        assert sum(d * sizes[path] for path, d in found.items()) == pytest.approx(density * 10_200)
    # By hand: d = 1/2 and 1/5 for f = 1 / 100 and n = 100, 400, so 130 of 500.
    found = allocation.igq_densities({"a": 100, "b": 400}, 130 / 500)
    assert found == pytest.approx({"a": 0.5, "b": 0.2})


@pytest.mark.parametrize("function", [allocation.erk_densities, allocation.igq_densities])
@pytest.mark.parametrize("density", [0, 1.1, -1, math.nan])
def test_densities_out_of_range_are_named(function, density):
    with pytest.raises(ValueError, match=f"density is {density}"):
        function({"w": (3, 3)} if function is allocation.erk_densities else {"w": 9}, density)


# -- exact sums ------------------------------------------------------------------------------------

shapes = st.lists(
    st.lists(st.integers(1, 9), min_size=2, max_size=4).map(tuple), min_size=1, max_size=6
)
sparsities = st.floats(0, 1, exclude_max=True)
TABLE = (("0", 1.0), ("1", 0.3), ("*", 0.05))


def layers_of(shapes):
    return {str(i): Layer(math.prod(shape), shape) for i, shape in enumerate(shapes)}


def removed(groups):
    return {path: count for (path,), count in groups}


@settings(deadline=None)
@given(shapes, st.lists(sparsities, min_size=2, max_size=4), st.sampled_from(["erk", "igq"]))
def test_totals_are_exact_and_no_layer_ever_gets_a_unit_back(shapes, sparsities, name):
    layers = layers_of(shapes)
    total, before = sum(layer.units for layer in layers.values()), dict.fromkeys(layers, 0)
    for sparsity in sorted(sparsities):
        counts = removed(allocation.ALLOCATIONS[name].groups(layers, sparsity))
        assert sum(counts.values()) == round(sparsity * total)
        for path, layer in layers.items():
            assert before[path] <= counts[path] <= layer.units
        before = counts


@settings(deadline=None)
@given(shapes, sparsities)
def test_counts_of_erk_are_its_densities_rounded(shapes, sparsity):
    layers = layers_of(shapes)
    densities = allocation.erk_densities(dict(enumerate(shapes)), 1 - sparsity)
    counts = removed(allocation.erk(layers, sparsity)).values()
    for count, layer, density in zip(counts, layers.values(), densities.values(), strict=True):
        # Half a unit by rounding; the rest makes up for that of the other layers.
        assert abs(layer.units - count - density * layer.units) <= 0.5 + len(shapes)


# -- tables ----------------------------------------------------------------------------------------

FOUR = {
    "Conv_0/kernel": Layer(100, (10, 10)),
    "Conv_1/kernel": Layer(1000, (10, 100)),
    "Dense_0/kernel": Layer(900, (30, 30)),
    "Dense_1/kernel": Layer(50, (5, 10)),
}
DENSITIES = {"Conv_0/*": 1.0, "Conv_*": 0.2, "Dense_0/*": 0.1}
OWN = (800 + 810) / 2050  # what these remove; Dense_1 is not named and stays dense


def counts_of(densities, sparsity, layers=FOUR):
    table = allocation.checked_table(densities)
    return [*removed(allocation.create(table).groups(layers, sparsity)).values()]


def test_a_table_is_reached_exactly_and_its_proportions_on_the_way():
    assert counts_of(DENSITIES, OWN) == [0, 800, 810, 0]
    assert counts_of(DENSITIES, OWN / 2) == [0, 400, 405, 0]
    assert counts_of(DENSITIES, 0) == [0, 0, 0, 0]
    assert counts_of({"*": 0.1}, 0.9) == [90, 900, 810, 45]


def test_a_table_of_rounded_numbers_meets_the_sparsity_that_it_was_made_for():
    found = allocation.erk_densities(NETWORKS["vgg16"], 0.1)
    layers = {str(i): Layer(math.prod(s), s) for i, s in NETWORKS["vgg16"].items()}
    total = sum(layer.units for layer in layers.values())
    counts = counts_of({str(i): round(d, 4) for i, d in found.items()}, 0.9, layers)
    assert sum(counts) == round(0.9 * total)
    for count, layer, density in zip(counts, layers.values(), found.values(), strict=True):
        assert 1 - count / layer.units == pytest.approx(density, abs=3e-4)


@pytest.mark.parametrize(
    ("densities", "sparsity", "message"),
    [
        ({"Conv_2/*": 0.5}, 0.1, r"pattern 'Conv_2/\*', which matches none .*Dense_1/kernel"),
        ({"*": 0.0}, 0.1, r"density 0\.0 for '\*'"),
        ({"*": 1.5}, 0.1, r"density 1\.5 for '\*'"),
        ({"*": math.nan}, 0.1, "density nan"),
        ({}, 0.1, "empty table"),
        (DENSITIES, 0.79, r"sparsity is 0\.79, .* share of 0\.7854 at most"),
        ({"*": 1.0}, 0.0009, "share of 0 at most"),
    ],
)
def test_tables_that_make_no_sense_are_named(densities, sparsity, message):
    with pytest.raises(ValueError, match=message):
        counts_of(densities, sparsity)


def test_pruners_take_tables_of_any_kind():
    pruners = {Pruner(allocation=d) for d in (DENSITIES, tuple(DENSITIES.items()))}
    pruners.add(Pruner(allocation=[list(pair) for pair in DENSITIES.items()]))
    assert len(pruners) == 1
    with pytest.raises(ValueError, match=r"density 2\.0 for 'a'"):
        Pruner(allocation={"a": 2})


# -- the guard -------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    shapes, st.lists(sparsities, min_size=1, max_size=3), st.sampled_from([*pruning.ALLOCATIONS])
)
def test_the_guard_leaves_one_unit_a_layer_and_the_total_as_it_was(shapes, sparsities, name):
    layers = layers_of(shapes)
    limit = sum(layer.units - 1 for layer in layers.values())
    before = None
    for sparsity in sorted(sparsities):
        groups = allocation.ALLOCATIONS[name].groups(layers, sparsity)
        guarded = allocation.guarded(groups, layers)
        assert sum(n for _, n in guarded) == min(limit, sum(n for _, n in groups))
        for paths, count in guarded:
            assert 0 <= count <= sum(layers[path].units - 1 for path in paths)
        counts = [n for _, n in guarded]
        assert before is None or all(a <= b for a, b in zip(before, counts, strict=True))
        before = counts


def test_the_guard_moves_nothing_where_nothing_collapses():
    groups = allocation.uniform(FOUR, 0.9)
    assert allocation.guarded(groups, FOUR) == groups
    for name, sparsity in itertools.product(("erk", "global"), (0.1, 0.9)):
        groups = allocation.ALLOCATIONS[name].groups(FOUR, sparsity)
        assert allocation.guarded(groups, FOUR) == groups


def test_what_a_small_layer_cannot_lose_the_largest_one_loses():
    layers = {"small": Layer(2, (1, 2)), "large": Layer(100, (10, 10))}
    groups = allocation.uniform(layers, 0.9)
    assert removed(groups) == {"small": 2, "large": 90}
    assert removed(allocation.guarded(groups, layers)) == {"small": 1, "large": 91}


def test_what_a_table_leaves_whole_the_guard_leaves_whole():
    params = {
        name: np.ones((3, 3, 8, n), np.float32) for name, n in (("a", 64), ("b", 8), ("c", 9))
    }
    for table in ({"a": 1.0, "b": 0.05, "c": 0.5}, {"b": 0.05, "c": 0.5}):
        pruner = Pruner(granularity="filter", allocation=table)
        found = pruner.removal(params, 12 / 81)  # of b all 8 would go
        assert found[("a",)] == 0
        assert (found[("b",)], found[("c",)]) == (7, 5)


@pytest.mark.parametrize("sparsity", [1.5, 1.0, -0.1, float("nan")])
def test_removal_takes_shares_alone(sparsity):
    with pytest.raises(ValueError, match=f"sparsity is {sparsity}; it must lie in"):
        Pruner().removal({"w": np.ones((2, 5), np.float32)}, sparsity)
