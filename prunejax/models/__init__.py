"""Flax networks by name.

`models.create("resnet8", num_classes=10, width=8)` gives the module; wrap it in a
`prunejax.Network` to add the input normalisation.
"""

import inspect
from collections.abc import Callable

import flax.linen as nn

from prunejax import names
from prunejax.models.lenet import LeNet5
from prunejax.models.mlp import MLP
from prunejax.models.resnet import ResNet, ResNet8, ResNet18
from prunejax.models.strided_cnn import StridedCNN

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "lenet5": LeNet5,
    "strided_cnn": StridedCNN,
    "resnet8": ResNet8,
    "resnet18": ResNet18,
}


def create(name: str, num_classes: int, **options) -> nn.Module:
    """The network called `name`.

    Args:
      name: a key of `MODELS`.
      num_classes: number of logits, at least 2.
      **options: the network's own attributes, such as `width` or `widths`; lists become tuples.

    Raises:
      ValueError: an unknown network or option, or fewer than two classes.
    """
    build = names.lookup("network", name, MODELS)
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; a classifier needs at least 2.")
    valid = set(inspect.signature(build).parameters) - {"num_classes", "parent", "name"}
    for option in options:
        if option not in valid:
            raise names.unknown(f"option of network {name!r}", option, valid)
    hashable = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    return build(num_classes=num_classes, **hashable)


__all__ = ["MLP", "MODELS", "LeNet5", "ResNet", "ResNet8", "ResNet18", "StridedCNN", "create"]
