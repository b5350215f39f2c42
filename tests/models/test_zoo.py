"""The larger networks: published sizes, resolutions, names."""

import math

import numpy as np
import pytest

from prunejax import models
from prunejax.models import resnet
from tests.models.tracing import count, create, kernels, network, traced

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


# -- errors ----------------------------------------------------------------------------------------


def test_unknown_stems_and_options_and_small_images_are_named():
    with pytest.raises(ValueError, match=r"Unknown stem 'cifar10'. Did you mean 'cifar'\?"):
        network("resnet18", stem="cifar10")
    with pytest.raises(ValueError, match=r"Unknown stem 'image-net'. Did you mean 'imagenet'\?"):
        network("mobilenet_v2", stem="image-net")
    with pytest.raises(ValueError, match="network 'resnet18' 'block'"):
        models.create("resnet18", 10, block=resnet.Bottleneck)
    with pytest.raises(ValueError, match=r"images of 16x12 pixels .* at least 16x16"):
        traced(models.create("vgg11", 10), (16, 12, 3))
