"""The larger networks with smaller channel counts, as shrinking makes them."""

import pytest

from prunejax import models
from tests.models.tracing import create, kernels, network, traced


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
    # Zeros are added to 5 channels, and in the third stage none to 7.
    "resnet20": (
        {"width": 8, "depths": [2, 1, 1]},
        {
            "Conv_0/kernel": (3, 3, 3, 5),
            **blocks(
                "BasicBlock_0 BasicBlock_1 BasicBlock_2 BasicBlock_3",
                {"Conv_0": (3, 3, 5, 2), "Conv_1": (3, 3, 2, 5)},
                {"Conv_0": (3, 3, 5, 4), "Conv_1": (3, 3, 4, 5)},
                {"Conv_0": (3, 3, 5, 3), "Conv_1": (3, 3, 3, 7)},
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


def test_wrong_channel_counts_are_named():
    with pytest.raises(ValueError, match=r"widths has 2 entries; this network needs 4"):
        network("resnet8", widths=[8, 8])
    with pytest.raises(ValueError, match=r"inner has 1 entries; this network needs 3"):
        network("resnet8", inner=[[8]])
    with pytest.raises(ValueError, match=r"widths begins with 8 and 9; .* make them equal"):
        network("resnet8", widths=[8, 9, 10, 11])
    with pytest.raises(ValueError, match=r"widths has 9 channels after 10, .*'padding' can only"):
        network("resnet20", widths=[8, 8, 10, 9])
    with pytest.raises(ValueError, match=r"widths has 16 channels after 20, .*'padding' can only"):
        network("resnet20", stem_width=20)
    with pytest.raises(ValueError, match=r"widths has 1 entries; this network needs 8"):
        network("vgg11", widths=[8])
    with pytest.raises(ValueError, match=r"expanded has 1 entries; this network needs 16"):
        network("mobilenet_v2", expanded=[8])


def test_shapes_that_fit_no_network_are_named():
    options, smaller = SMALLER["resnet8"]
    module = models.create("resnet8", 10, **options)
    with pytest.raises(ValueError, match=r"no 'BasicBlock_2/Conv_0/kernel'; .* keeps every layer"):
        module.resized({k: v for k, v in smaller.items() if not k.startswith("BasicBlock_2")})
    with pytest.raises(ValueError, match=r"no channels in 'Conv_0/kernel', \(3, 3, 3, 0\)"):
        module.resized({**smaller, "Conv_0/kernel": (3, 3, 3, 0)})
    with pytest.raises(ValueError, match=r"Stage 1 has blocks of \[7, 8\] channels"):
        module.resized({**smaller, "BasicBlock_2/Conv_1/kernel": (3, 3, 1, 8)})
