"""The networks of `prunejax.models` as torch modules with the same weights, for the peers."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from prunejax import models


def network_of(name: str, variables: Mapping[str, Any]):
    """The network as a torch module, from channels-first images, with these weights.

    Args:
      name: "strided_cnn", "lenet5", "resnet8", "resnet18", "vgg11" or "vgg16".
      variables: of the network, of any width.
    """
    from torch import nn

    variables = jax.tree.map(np.asarray, variables)
    params, stats = variables["params"], variables.get("batch_stats", {})
    if name in ("resnet8", "resnet18"):
        return _resnet(params, stats)
    if name in ("vgg11", "vgg16"):
        return _vgg(params, stats, models.create(name, num_classes=2).depths)
    pooling = {"strided_cnn": [], "lenet5": [nn.MaxPool2d(2)]}[name]
    options = {"strided_cnn": {"stride": 2, "padding": 1}, "lenet5": {"padding": 2}}[name]
    channels = params["Conv_1"]["kernel"].shape[-1]
    return nn.Sequential(
        _conv(params["Conv_0"], **options), nn.ReLU(), *pooling,
        _conv(params["Conv_1"], **options), nn.ReLU(), *pooling,
        nn.Flatten(),
        _dense(params["Dense_0"], channels), nn.ReLU(),
        _dense(params["Dense_1"]),
    )  # fmt: skip


def _resnet(params: Mapping[str, Any], stats: Mapping[str, Any]):
    from torch import nn

    class Block(nn.Module):
        def __init__(self, params, stats, stride):
            super().__init__()
            self.main = nn.Sequential(
                _conv(params["Conv_0"], stride=stride, padding=1),
                _norm(params["BatchNorm_0"], stats["BatchNorm_0"]),
                nn.ReLU(),
                _conv(params["Conv_1"], padding=1),
                _norm(params["BatchNorm_1"], stats["BatchNorm_1"]),
            )
            self.shortcut = nn.Identity()
            if "shortcut" in params:
                self.shortcut = nn.Sequential(
                    _conv(params["shortcut"], stride=stride),
                    _norm(params["shortcut_norm"], stats["shortcut_norm"]),
                )

        def forward(self, x):
            return nn.functional.relu(self.main(x) + self.shortcut(x))

    def stride(number, params):  # a stage begins with a projection, but for the first
        return 2 if number > 0 and "shortcut" in params else 1

    blocks = [f"BasicBlock_{i}" for i in range(sum(name.startswith("Basic") for name in params))]
    return nn.Sequential(
        _conv(params["Conv_0"], padding=1),
        _norm(params["BatchNorm_0"], stats["BatchNorm_0"]),
        nn.ReLU(),
        *(Block(params[n], stats[n], stride(i, params[n])) for i, n in enumerate(blocks)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        _dense(params["Dense_0"]),
    )


def _vgg(params: Mapping[str, Any], stats: Mapping[str, Any], depths: tuple[int, ...]):
    from torch import nn

    layers, ends = [], np.cumsum(depths)
    for number in range(ends[-1]):
        norm = f"BatchNorm_{number}"
        layers += [
            _conv(params[f"Conv_{number}"], padding=1),
            _norm(params[norm], stats[norm]),
            nn.ReLU(),
        ]
        if number + 1 in ends[:-1]:
            layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    channels = params[f"Conv_{ends[-1] - 1}"]["kernel"].shape[-1]
    for number in range(sum(name.startswith("Dense") for name in params)):
        layers += [_dense(params[f"Dense_{number}"], channels if number == 0 else 1), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _conv(params: Mapping[str, np.ndarray], *, stride: int = 1, padding: int = 0):
    from torch import nn

    size, _, inputs, outputs = params["kernel"].shape
    layer = nn.Conv2d(inputs, outputs, size, stride, padding, bias="bias" in params)
    _fill(layer, weight=params["kernel"].transpose(3, 2, 0, 1), bias=params.get("bias"))
    return layer


def _dense(params: Mapping[str, np.ndarray], channels: int = 1):
    """For features of so many channels, which flatten with the channel first in torch."""
    from torch import nn

    inputs, outputs = params["kernel"].shape
    kernel = params["kernel"].reshape(-1, channels, outputs).swapaxes(0, 1).reshape(inputs, outputs)
    layer = nn.Linear(inputs, outputs)
    _fill(layer, weight=kernel.T, bias=params["bias"])
    return layer


def _norm(params: Mapping[str, np.ndarray], stats: Mapping[str, np.ndarray]):
    from torch import nn

    layer = nn.BatchNorm2d(len(params["scale"]))  # eps 1e-5 and momentum 0.1 (0.9 in Flax)
    _fill(layer, weight=params["scale"], bias=params["bias"])
    _fill(layer, running_mean=stats["mean"], running_var=stats["var"])
    return layer


def _fill(layer, **arrays: np.ndarray | None) -> None:
    import torch

    with torch.no_grad():
        for name, array in arrays.items():
            if array is not None:
                getattr(layer, name).copy_(torch.from_numpy(np.array(array)))
