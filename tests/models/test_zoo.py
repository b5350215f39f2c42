"""The larger networks: published sizes, resolutions, names."""

import math

import numpy as np
import pytest

from prunejax import models
from prunejax.models import resnet
from tests.models.tracing import count, create, kernels, network, traced

# -- sizes -----------------------------------------------------------------------------------------


MNIST = ("mlp", "lenet5", "strided_cnn")  # networks for images of 28x28 in grey

# With ten classes, ImageNet's with a thousand; statistics of normalisations are no parameters.
PARAMETERS = [
    # LeNet-300-100: 784 x 300 + 300 x 100 + 100 x 10 weights and 410 biases.
    ("mlp", {}, 266_610),
    # 25 x (32 + 32 x 64) + 49 x 64 x 84 + 84 x 10 weights and 32 + 64 + 84 + 10 biases.
    ("lenet5", {}, 316_454),
    # Wong & Kolter (2018): 16 x (16 + 16 x 32) + 49 x 32 x 100 + 100 x 10 weights, 158 biases.
    ("strided_cnn", {}, 166_406),
    # Merkle et al. (2021) count 11,325,120 weights; 2,752 scales and shifts, 1,034 biases.
    ("vgg11", {}, 11_331_658),
    # That of five poolings and one dense layer which many train on CIFAR-10 has 14,728,266. Its
    # convolutions have 4,224 biases, which batch normalisation undoes; ours have none.
    ("vgg16", {"pool_last": True, "hidden": []}, 14_728_266 - 4_224),
    # HYDRA's has three dense layers in place of that one (Sehwag et al. 2020): 2048 x 256 +
    # 256 x 256 + 256 x 10 weights and 522 biases in place of 5,130.
    ("vgg16", {}, 14_724_042 - 5_130 + 592_384 + 522),
    # 9 x (3 x 16 + 2 x 16^2 + 16 x 32 + 32^2 + 32 x 64 + 64^2) weights, 16 x 32 + 32 x 64 of
    # projections, 336 scales and shifts, 650 of the last layer.
    ("resnet8", {}, 78_042),
    # He et al. (2016), table 6: 0.27, 0.85 and 1.7 million. With n blocks a stage the above without
    # projections, and 2 (n - 1) more convolutions a stage: 97,216 n - 21,926.
    ("resnet20", {}, 269_722),
    ("resnet56", {}, 853_018),
    ("resnet110", {}, 1_727_962),
    # torchvision, `num_params` of the weights of these names.
    ("resnet18", {"stem": "imagenet"}, 11_689_512),
    ("resnet50", {"stem": "imagenet"}, 25_557_032),
    ("mobilenet_v2", {"stem": "imagenet"}, 3_504_872),
    # The usual ones for CIFAR-10: a stem of 3x3 instead of 7x7 (MobileNetV2's is the same), and 10
    # classes instead of 1000: (49 - 9) x 3 x 64 fewer, and 990 x 513, 990 x 2049 or 990 x 1281.
    ("resnet18", {}, 11_173_962),
    ("resnet50", {}, 23_520_842),
    ("mobilenet_v2", {}, 2_236_682),
    # Zagoruyko & Komodakis (2016), table 4: 36.5 million. Of WRN-28-k, by adding up table 1,
    # 364,288 k^2 + 4,992 k + 474.
    ("wrn_28_10", {}, 36_479_194),
    ("wrn_28_4", {}, 5_849_050),
]


@pytest.mark.parametrize(("name", "options", "parameters"), PARAMETERS)
def test_every_network_has_as_many_parameters_as_published(name, options, parameters):
    module, image_shape = create(name, **options)
    shapes = traced(module, (28, 28, 1) if name in MNIST else image_shape).shapes
    assert count(shapes) == parameters


def test_no_network_is_missing_in_the_table():
    assert {name for name, _, _ in PARAMETERS} == set(models.MODELS)


@pytest.mark.parametrize("layers", [20, 56, 110])
def test_the_papers_networks_for_cifar_have_as_many_layers_as_their_names_say(layers):
    shapes = network(f"resnet{layers}")
    assert len(kernels(shapes)) == layers  # none of a shortcut
    # The projections that they do without, and their normalisation.
    more = count(network(f"resnet{layers}", shortcut="projection")) - count(shapes)
    assert more == 16 * 32 + 32 * 64 + 2 * (32 + 64)


@pytest.mark.parametrize(("width", "millions"), [(0.35, 1.66), (1.0, 3.47), (1.4, 6.06)])
def test_mobilenet_widths_have_the_sizes_of_its_authors_table(width, millions):
    # The table of the authors' released checkpoints, which leaves normalisation out.
    options = {} if width == 1 else {"width": width}
    shapes = network("mobilenet_v2", stem="imagenet", **options)
    without_norms = {p: s for p, s in shapes.items() if "norm" not in p.lower()}
    assert round(count(without_norms) / 1e6, 2) == millions


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
        ("wrn_28_4", {"shortcut": "padding"}),
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
    with pytest.raises(ValueError, match=r"Unknown shortcut 'pad'.* Valid: padding, projection"):
        network("resnet20", shortcut="pad")
    with pytest.raises(ValueError, match="network 'resnet18' 'block'"):
        models.create("resnet18", 10, block=resnet.Bottleneck)
    with pytest.raises(ValueError, match=r"images of 16x12 pixels .* at least 16x16"):
        traced(models.create("vgg11", 10), (16, 12, 3))
