"""Flax networks by name.

`models.create("resnet8", num_classes=10, width=8)` gives the module; wrap it in a
`prunejax.Network` to add the input normalisation.

Every network has `resized(shapes)`: itself with the channel counts of smaller parameters, whose
shapes are given by path, `{"Conv_0/kernel": (3, 3, 3, 12), ...}`.
"""

from collections.abc import Callable

import flax.linen as nn

from prunejax import checks, names
from prunejax.models.lenet import LeNet5
from prunejax.models.mlp import MLP
from prunejax.models.mobilenet import MobileNetV2
from prunejax.models.resnet import (
    ResNet,
    ResNet8,
    ResNet18,
    ResNet20,
    ResNet50,
    ResNet56,
    ResNet110,
)
from prunejax.models.strided_cnn import StridedCNN
from prunejax.models.vgg import VGG, VGG11, VGG16
from prunejax.models.wide_resnet import WRN28x4, WRN28x10

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "lenet5": LeNet5,
    "strided_cnn": StridedCNN,
    "vgg11": VGG11,
    "vgg16": VGG16,
    "resnet8": ResNet8,
    "resnet18": ResNet18,
    "resnet20": ResNet20,
    "resnet50": ResNet50,
    "resnet56": ResNet56,
    "resnet110": ResNet110,
    "wrn_28_4": WRN28x4,
    "wrn_28_10": WRN28x10,
    "mobilenet_v2": MobileNetV2,
}

# What a name decides, and what Flax adds.
_NOT_OPTIONS = {"block", "parent", "name"}


def create(name: str, num_classes: int, **options) -> nn.Module:
    """The network called `name`.

    Args:
      name: a key of `MODELS`.
      num_classes: number of logits, at least 2.
      **options: the network's own attributes, such as `width` or `widths`; lists become tuples.

    Raises:
      ValueError: an unknown network or option, or fewer than two classes.
    """
    checks.integer("num_classes", num_classes, least=2)
    return names.build(
        "network", name, MODELS, options, hidden=_NOT_OPTIONS, num_classes=num_classes
    )


__all__ = [
    "MLP",
    "MODELS",
    "VGG",
    "VGG11",
    "VGG16",
    "LeNet5",
    "MobileNetV2",
    "ResNet",
    "ResNet8",
    "ResNet18",
    "ResNet20",
    "ResNet50",
    "ResNet56",
    "ResNet110",
    "StridedCNN",
    "WRN28x4",
    "WRN28x10",
    "create",
]
