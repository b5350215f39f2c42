"""The unit counts of Merkle et al. (2021), as the result files in their repository have them.

Their rates c are 1 to 64, and `round((1 - 1 / c) n)` of n units are pruned: those of each layer by
itself (local) or of all together (global). Structured pruning leaves dense layers alone, so that
the MNIST network keeps 96 % of its weights at "64x"; shortcuts are neither pruned nor counted.

Not to be reproduced are their random masks of single weights, which lie in another order than the
weights and become far denser than intended: 2.4 % to 20.8 % are left at 64x. And how many weights
so many filters of all layers together have depends on which are left, that is, on training.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import masks, models, trees
from prunejax.pruning import Pruner, prune, schedules

RATES = (1, 2, 4, 8, 16, 32, 64)
TOTALS = {"cnn": 61_470, "vgg11": 11_325_120, "resnet8": 1_164_640, "resnet18": 11_000_000}
CNN = {  # two convolutions, the second without padding, each followed by pooling
    "Conv_0": (5, 5, 1, 6),
    "Conv_1": (5, 5, 6, 16),
    "Dense_0": (5 * 5 * 16, 120),
    "Dense_1": (120, 84),
    "Dense_2": (84, 10),
}


@functools.cache
def network(name):
    """Shapes of the weights that they count."""
    if name == "cnn":
        shapes = CNN
    else:
        options = {"resnet8": {"width": 64, "stem_width": 32}, "resnet18": {"stem": "imagenet"}}
        module = models.create(name, 10, **options.get(name, {}))
        images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        params = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
        # VGG has none, and a pattern has to match.
        exclude = "*shortcut*" if name.startswith("resnet") else ()
        layers = Pruner(exclude=exclude).layers(params)
        assert exclude == () or len(layers) < len(trees.prunable(params))
        shapes = {path: layer.shape for path, layer in layers.items()}
    return {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}


def sparsities():
    return [sparsity for _, sparsity in schedules.iterative(RATES, frequency=1)]


def unit_sizes(params, pruner):
    """Weights in a unit of each layer."""
    return {path: math.prod(x.shape) // x.units for path, x in pruner.layers(params).items()}


def weights_left(params, pruner):
    """At each rate; what is ranked together must have units of one size."""
    sizes = unit_sizes(params, pruner)
    total = sum(math.prod(leaf.shape) for leaf in params.values())
    counts = []
    for sparsity in sparsities():
        counts.append(total)
        for paths, removed in pruner.removal(params, sparsity).items():
            (size,) = {sizes[path] for path in paths}
            counts[-1] -= removed * size
    return counts


# Shares of all weights left from 2x on, means over the seeds, and of some last seed the exact
# number at the rate where its file ends.
HALVED = ".500 .250 .125 .062 .031 .016"
CNN_LEFT = ".979 .969 .964 .961 .960 .959"
VGG11_LEFT = ".593 .390 .288 .237 .212 .199"
RESNET8_LEFT = ".501 .252 .127 .065 .033 .018"
RESNET18_LEFT = ".500 .250 .125 .063 .032 .016"


@pytest.mark.parametrize(
    ("name", "granularity", "allocation", "shares", "rate", "exact"),
    [
        ("cnn", "weight", "uniform", HALVED, 64, 961),
        ("cnn", "weight", "global", ".500 .250 .125 .063 .031 .016", 64, 960),
        ("cnn", "kernel", "uniform", CNN_LEFT, 64, 58_970),
        ("cnn", "kernel", "global", CNN_LEFT, 64, 58_970),
        ("cnn", "filter", "uniform", ".979 .969 .964 .961 .959 .959", 64, 58_920),
        ("vgg11", "weight", "uniform", HALVED, 64, 176_955),
        ("vgg11", "weight", "global", HALVED, 64, 176_955),
        ("vgg11", "kernel", "uniform", VGG11_LEFT, 64, 2_251_419),
        ("vgg11", "kernel", "global", VGG11_LEFT, 64, 2_251_419),
        ("vgg11", "filter", "uniform", VGG11_LEFT, 64, 2_251_419),
        ("resnet8", "weight", "uniform", HALVED, 16, 72_790),
        ("resnet8", "weight", "global", HALVED, 64, 18_198),
        ("resnet8", "kernel", "uniform", RESNET8_LEFT, 64, 20_722),
        ("resnet8", "kernel", "global", RESNET8_LEFT, 64, 20_722),
        ("resnet8", "filter", "uniform", RESNET8_LEFT, 64, 20_704),
        ("resnet18", "weight", "uniform", HALVED, 64, 171_875),
        ("resnet18", "weight", "global", HALVED, 64, 171_875),
        ("resnet18", "kernel", "uniform", RESNET18_LEFT, 64, 176_915),
        ("resnet18", "filter", "uniform", RESNET18_LEFT, 64, 176_915),
    ],
)
def test_weights_left_at_the_seven_rates(name, granularity, allocation, shares, rate, exact):
    pruner = Pruner(granularity=granularity, allocation=allocation, guard=False)
    counts = weights_left(network(name), pruner)
    assert counts[0] == TOTALS[name]
    assert counts[RATES.index(rate)] == exact
    assert [f"{n / TOTALS[name]:.3f}" for n in counts[1:]] == [f"0{s}" for s in shares.split()]


def test_kernels_of_all_layers_where_those_of_the_stem_are_larger():
    # ResNet-18 at 4x, the last run of its file, kept 2,755,360 weights: 5,120 in the dense layer,
    # 9 in each kernel and 40 more in those of the 7x7 stem, of which training left a number.
    params, pruner = network("resnet18"), Pruner(granularity="kernel", allocation="global")
    units = {path: layer.units for path, layer in pruner.layers(params).items()}
    sizes = unit_sizes(params, pruner)
    assert {sizes[path] for path in units} == {9, 49}
    (removed,) = pruner.removal(params, sparsities()[RATES.index(4)]).values()
    kept = sum(units.values()) - removed
    in_stem, rest = divmod(2_755_360 - 5_120 - 9 * kept, 40)
    assert rest == 0
    assert 0 <= in_stem <= units["Conv_0/kernel"]


@pytest.mark.parametrize("granularity", ["weight", "kernel", "filter"])
@pytest.mark.parametrize(
    ("criterion", "allocation"),
    [("random", "uniform"), ("magnitude", "uniform"), ("magnitude", "global")],
)
def test_masks_of_the_nine_methods_have_these_counts(criterion, granularity, allocation):
    rng = np.random.default_rng(0)
    params = {path: jnp.asarray(rng.normal(size=x.shape)) for path, x in network("cnn").items()}
    pruner = Pruner(criterion, granularity, allocation, guard=False)
    units = {path: layer.units for path, layer in pruner.layers(params).items()}
    sizes = unit_sizes(params, pruner)
    mask = pruner.initial(params)
    for sparsity in sparsities():
        mask = prune(params, sparsity, pruner, key=jax.random.key(0), current=mask)
        removed = {path: int((~np.asarray(mask[path])).sum()) for path in units}
        if allocation == "uniform":
            assert removed == {path: round(sparsity * n) for path, n in units.items()}
        else:
            assert sum(removed.values()) == round(sparsity * sum(units.values()))
        kept = sum(masks.kept(params, mask).values())
        assert kept == TOTALS["cnn"] - sum(n * sizes[path] for path, n in removed.items())


@pytest.mark.parametrize(
    ("name", "granularity", "rate"),
    [
        # Of 6 units 5.625 go; published accuracies are 10 % and 11 % from here on.
        ("cnn", "kernel", 16),
        ("cnn", "filter", 16),
        # Of 32 units 31.5 go, which rounds to the even one; 10.0 % with a deviation of 0.
        ("resnet8", "filter", 64),
        ("resnet8", "kernel", None),
        ("vgg11", "kernel", None),
        ("vgg11", "filter", None),
        ("resnet18", "kernel", None),
        ("resnet18", "filter", None),
    ],
)
def test_published_collapse_is_a_layer_without_units_and_the_guard_keeps_one(
    name, granularity, rate
):
    params = network(name)
    for guard in (False, True):
        pruner = Pruner(granularity=granularity, guard=guard)
        least = [
            min(pruner.layers(params)[path].units - n for (path,), n in removal.items())
            for removal in (pruner.removal(params, sparsity) for sparsity in sparsities())
        ]
        emptied = [c for c, units in zip(RATES, least, strict=True) if units == 0]
        assert emptied[:1] == ([rate] if rate and not guard else [])
