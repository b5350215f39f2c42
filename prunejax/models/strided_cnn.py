"""The small strided CNN of Wong & Kolter (2018), for which exact robust accuracies are known."""

from collections.abc import Mapping

import flax.linen as nn
import jax

from prunejax.models import layers, resizing


class StridedCNN(nn.Module):
    """Two 4x4 convolutions of stride 2 and two dense layers, ReLU between them.

    Attributes:
      num_classes: number of logits.
      widths: channels of the two convolutions and units of the hidden dense layer.
    """

    num_classes: int
    widths: tuple[int, int, int] = (16, 32, 100)

    @nn.nowrap
    def resized(self, shapes: Mapping[str, tuple[int, ...]]) -> "StridedCNN":
        """The same network with the widths of smaller parameters, given their shapes by path.

        Raises:
          ValueError: a kernel is missing.
        """
        return self.clone(widths=resizing.outputs(shapes, ["Conv_0", "Conv_1", "Dense_0"]))

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        first, second, hidden = self.widths
        x = nn.relu(nn.Conv(first, (4, 4), strides=2, padding=1)(x))
        x = nn.relu(nn.Conv(second, (4, 4), strides=2, padding=1)(x))
        x = nn.relu(nn.Dense(hidden)(layers.flatten(x)))
        return nn.Dense(self.num_classes)(x)
