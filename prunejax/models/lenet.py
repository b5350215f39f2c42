"""LeNet-5 with ReLU and max pooling (LeCun et al. 1998; "same" padding, 84 hidden units)."""

from collections.abc import Mapping

import flax.linen as nn
import jax

from prunejax.models import layers, resizing


class LeNet5(nn.Module):
    """Two 5x5 convolutions with pooling and two dense layers, as Xie et al. (2020) prune it.

    Attributes:
      num_classes: number of logits.
      widths: channels of the two convolutions and units of the hidden dense layer.
    """

    num_classes: int
    widths: tuple[int, int, int] = (32, 64, 84)

    @nn.nowrap
    def resized(self, shapes: Mapping[str, tuple[int, ...]]) -> "LeNet5":
        """The same network with the widths of smaller parameters, given their shapes by path.

        Raises:
          ValueError: a kernel is missing.
        """
        return self.clone(widths=resizing.outputs(shapes, ["Conv_0", "Conv_1", "Dense_0"]))

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        first, second, hidden = self.widths
        x = layers.max_pool_2x2(nn.relu(nn.Conv(first, (5, 5))(x)))
        x = layers.max_pool_2x2(nn.relu(nn.Conv(second, (5, 5))(x)))
        x = nn.relu(nn.Dense(hidden)(layers.flatten(x)))
        return nn.Dense(self.num_classes)(x)
