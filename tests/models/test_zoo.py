"""The larger networks: published sizes, resolutions, smaller channel counts, their blocks."""

import functools
import itertools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import models, trees
from prunejax.models import mobilenet, resnet, wide_resnet


class Trace(NamedTuple):
    """What a network looks like.

    Shapes of the parameters by path, of three images' logits, the last map's resolution, and for
    each residual block whether it adds its input and whether its output has the input's shape.
    """

    shapes: dict[str, tuple[int, ...]]
    logits: tuple[int, ...]
    resolution: tuple[int, ...] | None
    residual: list[tuple[bool, bool]]


@functools.cache
def traced(module, image_shape):
    """What a network looks like on such images; nothing is computed."""
    maps, residual = [None], []

    def note(next_function, args, kwargs, context):
        out = next_function(*args, **kwargs)
        if isinstance(context.module, nn.Conv):
            maps.append(out.shape[1:3])
        if isinstance(context.module, resnet.Block):
            residual.append((not context.module.project, args[0].shape == out.shape))
        if isinstance(context.module, mobilenet.InvertedResidual):
            residual.append((context.module.residual, args[0].shape == out.shape))
        return out

    images = jax.ShapeDtypeStruct((3, *image_shape), jnp.float32)
    with nn.intercept_methods(note):
        logits, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), images)
    shapes = {path: leaf.shape for path, leaf in trees.flatten(variables["params"]).items()}
    return Trace(shapes, logits.shape, maps[-1], residual)


def create(name, **options):
    """A network of ten classes, of a thousand where it is ImageNet's, and its images' shape."""
    if options.get("stem") == "imagenet":
        return models.create(name, 1000, **options), (224, 224, 3)
    return models.create(name, 10, **options), (32, 32, 3)


def network(name, **options):
    return traced(*create(name, **options)).shapes


def kernels(shapes):
    return {path: shape for path, shape in shapes.items() if path.endswith("/kernel")}


def count(shapes):
    return sum(map(math.prod, shapes.values()))


# -- sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"),
    # torchvision's networks of the same names, which have the same layers.
    [("resnet18", 11_689_512), ("resnet50", 25_557_032), ("mobilenet_v2", 3_504_872)],
)
def test_imagenet_networks_have_the_parameters_of_torchvision(name, parameters):
    assert count(network(name, stem="imagenet")) == parameters


def test_cifar_stems_change_the_first_and_the_last_layer_only():
    # From ImageNet's 7x7 stem to 3x3, and from 1000 classes to 10.
    for name, features in [("resnet18", 512), ("resnet50", 2048)]:
        difference = (49 - 9) * 3 * 64 + (1000 - 10) * (features + 1)
        imagenet = count(network(name, stem="imagenet"))
        assert count(network(name)) == imagenet - difference
    assert count(network("mobilenet_v2")) == 3_504_872 - (1000 - 10) * 1281


@pytest.mark.parametrize(("width", "millions"), [(0.35, 1.66), (1.0, 3.47), (1.4, 6.06)])
def test_mobilenet_widths_have_the_sizes_of_its_authors_table(width, millions):
    # The table of the authors' released checkpoints, which leaves normalisation out.
    options = {} if width == 1 else {"width": width}
    shapes = network("mobilenet_v2", stem="imagenet", **options)
    without_norms = {p: s for p, s in shapes.items() if "norm" not in p.lower()}
    assert round(count(without_norms) / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("name", "blocks", "millions"), [("resnet20", 3, 0.27), ("resnet56", 9, 0.85)]
)
def test_cifar_resnets_have_the_sizes_of_their_paper(name, blocks, millions):
    # He et al., table 6, whose shortcuts have no parameters (option A). Ours are projections
    # (option B): 16 x 32 and 32 x 64 weights and their normalisation more.
    widths = (16, 32, 64)
    convs = 9 * (3 * 16 + 16 * 32 + 32 * 64 + sum((2 * blocks - (w > 16)) * w**2 for w in widths))
    norms = 2 * (16 + sum(2 * blocks * w for w in widths))
    assert round((convs + norms + 650) / 1e6, 2) == millions
    shapes = network(name)
    assert count(shapes) == convs + norms + 650 + 16 * 32 + 32 * 64 + 2 * (32 + 64)


def test_resnet110_has_1_7_million_parameters():
    # He et al., table 6; 109 convolutions in a chain, 2 projections and the last layer.
    shapes = network("resnet110")
    assert round(count(shapes) / 1e6, 1) == 1.7
    assert len(kernels(shapes)) == 109 + 2 + 1


@pytest.mark.parametrize(
    ("name", "k", "millions", "parameters"),
    # Zagoruyko & Komodakis publish 36.5 million for WRN-28-10; the other follows by the formula.
    [("wrn_28_10", 10, 36.5, 36_479_194), ("wrn_28_4", 4, 5.8, 5_849_050)],
)
def test_wide_resnets_in_closed_form(name, k, millions, parameters):
    total, before = 27 * 16, 16
    for after in (16 * k, 32 * k, 64 * k):
        total += 9 * before * after + before * after + 7 * 9 * after**2  # 8 convs, a projection
        total += 2 * before + 7 * 2 * after  # a norm before each conv
        before = after
    total += 2 * before + 10 * before + 10
    assert count(network(name)) == total == parameters
    assert round(total / 1e6, 1) == millions


def test_vgg11_has_the_weights_of_merkle_et_al():
    # 11,325,120 in the result files of Merkle et al. (2021). Eight convolutions have 9,217,728;
    # the rest is 2048 x 1024 + 1024 x 10: maps of 2x2x512 and one hidden layer.
    shapes = kernels(network("vgg11"))
    assert count(shapes) == 11_325_120
    assert shapes["Dense_0/kernel"] == (2048, 1024)


def test_resnet8_has_the_weights_of_merkle_et_al():
    # 1,164,640 in the same files: a stem of 32 and blocks of 64, 128 and 256 channels, whose
    # shortcuts are not counted.
    shapes = kernels(network("resnet8", width=64, stem_width=32))
    shortcuts = {path: shape for path, shape in shapes.items() if "shortcut" in path}
    assert count(shapes) - count(shortcuts) == 1_164_640
    assert len(shortcuts) == 3


def test_vgg16_without_hidden_layers_has_the_size_of_the_common_cifar_vgg16():
    # 14,728,266 is that of the five poolings and one dense layer that many train on CIFAR-10;
    # its convolutions have biases, which batch normalisation undoes, ours have none.
    shapes = network("vgg16", pool_last=True, hidden=[])
    biases = sum(shape[-1] for path, shape in shapes.items() if path.endswith("/scale"))
    assert count(shapes) + biases == 14_728_266


def erk(shapes, density):
    """Erdős-Rényi-kernel densities: proportional to sum / product of a kernel's axes, at most 1."""
    sizes = np.array([math.prod(shape) for shape in shapes])
    ratios = np.array([sum(shape) for shape in shapes]) / sizes
    dense = np.zeros(len(sizes), bool)
    while True:
        left = density * sizes.sum() - sizes[dense].sum()
        densities = np.where(dense, 1, ratios * left / (ratios * sizes)[~dense].sum())
        if np.all(densities <= 1):
            return densities
        dense |= densities > 1


@pytest.mark.parametrize(
    ("density", "expected"),
    # What HARP's code lists for its VGG16, layer by layer.
    [
        (0.1, "1 .5180 .3827 .2532 .1885 .1252 .1252 .0935" + 5 * " .0622" + " .6263 1 1"),
        (0.01, ".5868 .0505 .0373 .0247 .0184 .0122 .0122 .0091" + 5 * " .0061" + " .0610 .1085 1"),
    ],
)
def test_vgg16_is_that_of_hydra_by_its_known_erk_densities(density, expected):
    shapes = network("vgg16")
    layers = [f"Conv_{i}/kernel" for i in range(13)] + [f"Dense_{i}/kernel" for i in range(3)]
    assert set(layers) == set(kernels(shapes))
    densities = erk([shapes[path] for path in layers], density)
    np.testing.assert_allclose(densities, np.array(expected.split(), float), atol=6e-5)


# -- shapes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", models.MODELS)
def test_logits_of_colour_images_are_one_number_a_class(name):
    assert traced(*create(name)).logits == (3, 10)


@pytest.mark.parametrize("name", ["vgg16", "resnet8", "resnet50", "wrn_28_4", "mobilenet_v2"])
def test_logits_of_images_of_odd_size_are_one_number_a_class(name):
    stem = {"stem": "imagenet"} if name == "resnet50" else {}
    assert traced(models.create(name, 10, **stem), (29, 27, 1)).logits == (3, 10)


@pytest.mark.parametrize(
    ("name", "options", "side"),
    [
        ("resnet20", {}, 8),
        ("resnet50", {}, 4),
        ("resnet50", {"stem": "imagenet"}, 7),
        ("wrn_28_4", {}, 8),
        ("mobilenet_v2", {}, 4),
        ("mobilenet_v2", {"stem": "imagenet"}, 7),
        ("vgg16", {}, 2),  # HYDRA flattens maps of 2x2x512
    ],
)
def test_the_last_map_has_the_resolution_of_the_papers(name, options, side):
    assert traced(*create(name, **options)).resolution == (side, side)


@pytest.mark.parametrize(
    ("name", "options", "identities"),
    [
        ("resnet8", {"width": 64, "stem_width": 32}, 0),
        ("resnet18", {"stem": "imagenet"}, 8 - 3),
        ("resnet50", {}, 16 - 4),
        ("wrn_28_4", {}, 12 - 3),
        ("mobilenet_v2", {}, 17 - 7),
    ],
)
def test_before_pruning_blocks_add_their_input_where_shapes_agree(name, options, identities):
    residual = traced(*create(name, **options)).residual
    assert all(adds == agree for adds, agree in residual)
    assert sum(adds for adds, _ in residual) == identities


def test_names_that_checkpoints_depend_on():
    assert kernels(network("resnet8", width=4)) == {
        "Conv_0/kernel": (3, 3, 3, 4),
        "BasicBlock_0/Conv_0/kernel": (3, 3, 4, 4),
        "BasicBlock_0/Conv_1/kernel": (3, 3, 4, 4),
        "BasicBlock_1/Conv_0/kernel": (3, 3, 4, 8),
        "BasicBlock_1/Conv_1/kernel": (3, 3, 8, 8),
        "BasicBlock_1/shortcut/kernel": (1, 1, 4, 8),
        "BasicBlock_2/Conv_0/kernel": (3, 3, 8, 16),
        "BasicBlock_2/Conv_1/kernel": (3, 3, 16, 16),
        "BasicBlock_2/shortcut/kernel": (1, 1, 8, 16),
        "Dense_0/kernel": (16, 10),
    }
    norms = {path for path in network("resnet8", width=4) if path.endswith("/scale")}
    assert norms == {
        "BatchNorm_0/scale",
        *(f"BasicBlock_{i}/BatchNorm_{j}/scale" for i in range(3) for j in (0, 1)),
        *(f"BasicBlock_{i}/shortcut_norm/scale" for i in (1, 2)),
    }


# -- smaller channel counts ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlp", {}),
        ("lenet5", {}),
        ("strided_cnn", {}),
        ("vgg11", {}),
        ("vgg16", {"hidden": [], "pool_last": True}),
        ("resnet8", {"width": 64, "stem_width": 32}),
        ("resnet18", {"stem": "imagenet"}),
        ("resnet20", {}),
        ("resnet50", {}),
        ("wrn_28_4", {}),
        ("mobilenet_v2", {}),
    ],
)
def test_resized_to_its_own_shapes_is_the_same(name, options):
    module, image_shape = create(name, **options)
    shapes = traced(module, image_shape).shapes
    assert traced(module.resized(shapes), image_shape).shapes == shapes


def blocks(names, *shapes):
    """`blocks("A_0 A_1", {"x": s}, {"x": t})` is `{"A_0/x/kernel": s, "A_1/x/kernel": t}`."""
    return {
        f"{block}/{layer}/kernel": shape
        for block, layers in zip(names.split(), shapes, strict=True)
        for layer, shape in layers.items()
    }


def smaller_mobilenet():
    stem, stages, head = 5, (3, 4, 6, 7, 2, 9, 1), 11
    shapes = {"Conv_0/kernel": (3, 3, 3, stem), "Conv_1/kernel": (1, 1, 1, head)}
    depths = (1, 2, 3, 4, 3, 3, 1)
    outputs = [width for width, depth in zip(stages, depths, strict=True) for _ in range(depth)]
    inputs = [stem, *outputs]
    for i, (before, after) in enumerate(zip(inputs, outputs, strict=False)):
        inside = stem if i == 0 else 1 + i % 5
        layers = {"depthwise": (3, 3, 1, inside), "project": (1, 1, inside, after)}
        if i > 0:
            layers["expand"] = (1, 1, before, inside)
        shapes |= blocks(f"InvertedResidual_{i}", layers)
    return shapes | {"Dense_0/kernel": (head, 10)}


SMALLER = {
    "mlp": ({}, {"Dense_0/kernel": (3072, 4), "Dense_1/kernel": (4, 3), "Dense_2/kernel": (3, 10)}),
    "lenet5": (
        {},
        {
            "Conv_0/kernel": (5, 5, 3, 3),
            "Conv_1/kernel": (5, 5, 3, 2),
            "Dense_0/kernel": (8 * 8 * 2, 5),
            "Dense_1/kernel": (5, 10),
        },
    ),
    "strided_cnn": (
        {},
        {
            "Conv_0/kernel": (4, 4, 3, 3),
            "Conv_1/kernel": (4, 4, 3, 2),
            "Dense_0/kernel": (8 * 8 * 2, 5),
            "Dense_1/kernel": (5, 10),
        },
    ),
    "vgg11": (
        {},
        {
            "Conv_0/kernel": (3, 3, 3, 2),
            "Conv_1/kernel": (3, 3, 2, 5),
            "Conv_2/kernel": (3, 3, 5, 1),
            "Conv_3/kernel": (3, 3, 1, 4),
            "Conv_4/kernel": (3, 3, 4, 7),
            "Conv_5/kernel": (3, 3, 7, 2),
            "Conv_6/kernel": (3, 3, 2, 3),
            "Conv_7/kernel": (3, 3, 3, 6),
            "Dense_0/kernel": (2 * 2 * 6, 9),
            "Dense_1/kernel": (9, 10),
        },
    ),
    "resnet8": (
        {"width": 8, "depths": [1, 2]},
        {
            "Conv_0/kernel": (3, 3, 3, 5),
            **blocks(
                "BasicBlock_0 BasicBlock_1 BasicBlock_2",
                {"Conv_0": (3, 3, 5, 2), "Conv_1": (3, 3, 2, 5)},
                {"Conv_0": (3, 3, 5, 3), "Conv_1": (3, 3, 3, 7), "shortcut": (1, 1, 5, 7)},
                {"Conv_0": (3, 3, 7, 1), "Conv_1": (3, 3, 1, 7)},
            ),
            "Dense_0/kernel": (7, 10),
        },
    ),
    # The first stage happens to be as wide as the stem, and keeps its projection all the same.
    "resnet50": (
        {"width": 4, "depths": [1, 2]},
        {
            "Conv_0/kernel": (3, 3, 3, 3),
            **blocks(
                "Bottleneck_0 Bottleneck_1 Bottleneck_2",
                {
                    "Conv_0": (1, 1, 3, 2),
                    "Conv_1": (3, 3, 2, 1),
                    "Conv_2": (1, 1, 1, 3),
                    "shortcut": (1, 1, 3, 3),
                },
                {
                    "Conv_0": (1, 1, 3, 4),
                    "Conv_1": (3, 3, 4, 1),
                    "Conv_2": (1, 1, 1, 9),
                    "shortcut": (1, 1, 3, 9),
                },
                {"Conv_0": (1, 1, 9, 2), "Conv_1": (3, 3, 2, 2), "Conv_2": (1, 1, 2, 9)},
            ),
            "Dense_0/kernel": (9, 10),
        },
    ),
    "wrn_28_4": (
        {"width": 8, "stem_width": 4, "depths": [1, 2]},
        {
            "Conv_0/kernel": (3, 3, 3, 3),
            **blocks(
                "WideBlock_0 WideBlock_1 WideBlock_2",
                {"Conv_0": (3, 3, 3, 5), "Conv_1": (3, 3, 5, 3), "shortcut": (1, 1, 3, 3)},
                {"Conv_0": (3, 3, 3, 2), "Conv_1": (3, 3, 2, 6), "shortcut": (1, 1, 3, 6)},
                {"Conv_0": (3, 3, 6, 4), "Conv_1": (3, 3, 4, 6)},
            ),
            "Dense_0/kernel": (6, 10),
        },
    ),
    "mobilenet_v2": ({}, smaller_mobilenet()),
}


@pytest.mark.parametrize("name", SMALLER)
def test_resized_to_smaller_shapes_has_them_exactly(name):
    options, smaller = SMALLER[name]
    module, image_shape = create(name, **options)
    before = traced(module, image_shape)
    after = traced(module.resized(smaller), image_shape)
    assert kernels(after.shapes) == smaller
    assert set(after.shapes) == set(before.shapes)
    assert after.logits == (3, 10)


def test_a_network_resized_twice_has_the_second_shapes():
    options, smaller = SMALLER["wrn_28_4"]
    module, image_shape = create("wrn_28_4", **options)
    before = traced(module, image_shape).shapes
    assert traced(module.resized(smaller).resized(before), image_shape).shapes == before


def test_widths_can_be_lists_of_lists():
    _, smaller = SMALLER["resnet8"]
    module = models.create(
        "resnet8", 10, depths=[1, 2], width=8, widths=[5, 5, 7], inner=[[2], [3], [1]]
    )
    assert module == models.create("resnet8", 10, depths=(1, 2), width=8).resized(smaller)
    assert isinstance(hash(module), int)


# -- values ----------------------------------------------------------------------------------------


def initialised(block, shape):
    """Random kernels and input, and what norms divide by: their other numbers are 0 and 1."""
    random = np.random.default_rng(0)
    x = 3 * random.normal(size=shape).astype(np.float32)
    variables = jax.eval_shape(functools.partial(block.init, train=False), jax.random.key(0), x)

    def value(path, leaf):
        if path.endswith("kernel"):
            return random.normal(size=leaf.shape).astype(np.float32)
        return np.full(leaf.shape, path.endswith(("scale", "var")), np.float32)

    return trees.map_with_path(value, variables), x, np.sqrt(np.float32(1 + 1e-5))


def evaluate(block, variables, x):
    return jax.jit(lambda variables, x: block.apply(variables, x, train=False))(variables, x)


def without(variables, layer):
    """The variables with a convolution of zeros."""
    zeros = np.zeros_like(variables["params"][layer]["kernel"])
    return {**variables, "params": {**variables["params"], layer: {"kernel": zeros}}}


def test_a_wide_block_without_its_last_convolution_is_its_shortcut():
    block = wide_resnet.WideBlock(features=3, inner=(2,), strides=1, project=False)
    variables, x, _ = initialised(block, (2, 4, 5, 3))
    out = evaluate(block, without(variables, "Conv_1"), x)
    np.testing.assert_array_equal(out, x)  # no ReLU behind the sum


def test_a_projected_wide_shortcut_reads_the_normalised_input():
    block = wide_resnet.WideBlock(features=4, inner=(2,), strides=2, project=True)
    variables, x, std = initialised(block, (2, 4, 5, 3))
    out = evaluate(block, without(variables, "Conv_1"), x)
    kernel = variables["params"]["shortcut"]["kernel"][0, 0]
    expected = np.maximum(x / std, 0)[:, ::2, ::2] @ kernel
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [resnet.BasicBlock, resnet.Bottleneck])
def test_other_blocks_without_their_last_convolution_are_the_relu_of_their_shortcut(kind):
    last = f"Conv_{kind.convs - 1}"
    block = kind(features=3, inner=(2,) * (kind.convs - 1), strides=1, project=False)
    variables, x, _ = initialised(block, (2, 4, 5, 3))
    out = evaluate(block, without(variables, last), x)
    np.testing.assert_array_equal(out, np.maximum(x, 0))


@pytest.mark.parametrize(("strides", "residual"), [(2, False), (1, True)])
def test_an_inverted_residual_correlates_each_channel_alone(strides, residual):
    block = mobilenet.InvertedResidual(3, None, strides, residual)
    variables, x, std = initialised(block, (2, 5, 4, 3))
    identity = {"kernel": np.eye(3, dtype=np.float32)[None, None]}
    params = {**variables["params"], "project": identity}
    out = evaluate(block, {**variables, "params": params}, x)

    kernel = params["depthwise"]["kernel"][:, :, 0]  # [3, 3, channels]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = itertools.product(range(3), range(3))
    maps = sum(padded[:, i : i + 5, j : j + 4] * kernel[i, j] for i, j in shifts)
    maps = maps[:, ::strides, ::strides]
    assert np.any(maps > 6)  # where ReLU6 is not ReLU
    expected = np.clip(maps / std, 0, 6) / std + (x if residual else 0)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


def test_the_imagenet_stem_pools_around_every_second_pixel_of_its_convolution():
    module = resnet.ResNet(num_classes=2, depths=(0,), width=1, stem="imagenet")
    variables, x, std = initialised(module, (1, 16, 16, 1))
    centre = np.zeros((7, 7, 1, 1), np.float32)
    centre[3, 3] = 1
    params = {**variables["params"], "Conv_0": {"kernel": centre}}
    out = evaluate(module, {**variables, "params": params}, x)

    maps = np.pad(np.maximum(x[0, ::2, ::2, 0] / std, 0), 1)  # [10, 10]; below 0 is nothing
    pooled = [maps[i : i + 3, j : j + 3].max() for i in range(0, 8, 2) for j in range(0, 8, 2)]
    np.testing.assert_allclose(out[0], np.mean(pooled) * params["Dense_0"]["kernel"][0], rtol=1e-5)


# -- errors ----------------------------------------------------------------------------------------


def test_wrong_channel_counts_are_named():
    with pytest.raises(ValueError, match=r"widths has 2 entries; this network needs 4"):
        network("resnet8", widths=[8, 8])
    with pytest.raises(ValueError, match=r"inner has 1 entries; this network needs 3"):
        network("resnet8", inner=[[8]])
    with pytest.raises(ValueError, match=r"widths begins with 8 and 9; .* make them equal"):
        network("resnet8", widths=[8, 9, 10, 11])
    with pytest.raises(ValueError, match=r"widths has 1 entries; this network needs 8"):
        network("vgg11", widths=[8])
    with pytest.raises(ValueError, match=r"expanded has 1 entries; this network needs 16"):
        network("mobilenet_v2", expanded=[8])


def test_shapes_that_fit_no_network_are_named():
    options, smaller = SMALLER["resnet8"]
    module = models.create("resnet8", 10, **options)
    with pytest.raises(ValueError, match=r"no 'BasicBlock_2/Conv_0/kernel'; .* keeps every layer"):
        module.resized({k: v for k, v in smaller.items() if not k.startswith("BasicBlock_2")})
    with pytest.raises(ValueError, match=r"Stage 1 has blocks of \[7, 8\] channels"):
        module.resized({**smaller, "BasicBlock_2/Conv_1/kernel": (3, 3, 1, 8)})


def test_unknown_stems_and_options_and_small_images_are_named():
    with pytest.raises(ValueError, match=r"Unknown stem 'cifar10'. Did you mean 'cifar'\?"):
        network("resnet18", stem="cifar10")
    with pytest.raises(ValueError, match=r"Unknown stem 'image-net'. Did you mean 'imagenet'\?"):
        network("mobilenet_v2", stem="image-net")
    with pytest.raises(ValueError, match="network 'resnet18' 'block'"):
        models.create("resnet18", 10, block=resnet.Bottleneck)
    with pytest.raises(ValueError, match=r"images of 16x12 pixels .* at least 16x16"):
        traced(models.create("vgg11", 10), (16, 12, 3))
