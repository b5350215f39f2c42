"""VGG networks with batch normalisation for small images (Simonyan & Zisserman 2015)."""

import functools
from collections.abc import Mapping

import flax.linen as nn
import jax

from prunejax.models import layers, resizing


class VGG(nn.Module):
    """Stages of 3x3 convolutions with pooling between them, and dense layers.

    Attributes:
      num_classes: number of logits.
      depths: convolutions in each stage.
      hidden: units of the hidden dense layers.
      width: nominal channels of the first stage; they double from stage to stage, up to eightfold.
      pool_last: whether the last stage too is followed by pooling; without it, images of 32x32
        come to the dense layers as 2x2 maps.
      widths: channels of every convolution in fact; nominal by default.

    Raises:
      ValueError: `widths` of a wrong length, or images of which pooling leaves nothing.
    """

    num_classes: int
    depths: tuple[int, ...]
    hidden: tuple[int, ...] = ()
    width: int = 64
    pool_last: bool = False
    widths: tuple[int, ...] | None = None

    @nn.nowrap
    def nominal_widths(self) -> tuple[int, ...]:
        """Channels of every convolution before any pruning."""
        return tuple(
            self.width * min(2**stage, 8)
            for stage, depth in enumerate(self.depths)
            for _ in range(depth)
        )

    @nn.nowrap
    def resized(self, shapes: Mapping[str, tuple[int, ...]]) -> "VGG":
        """The same network with the channel counts of smaller parameters, all of them free.

        Args:
          shapes: shapes of all the parameters by path; none of the layers may be missing.

        Raises:
          ValueError: a kernel is missing.
        """
        return self.clone(
            widths=resizing.outputs(shapes, [f"Conv_{i}" for i in range(sum(self.depths))]),
            hidden=resizing.outputs(shapes, [f"Dense_{i}" for i in range(len(self.hidden))]),
        )

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        widths = iter(resizing.chosen("widths", self.widths, self.nominal_widths()))
        poolings = len(self.depths) - 1 + self.pool_last
        height, width = x.shape[1:3]
        if min(height, width) < 2**poolings:
            raise ValueError(
                f"images of {height}x{width} pixels are too small for a VGG with {poolings} "
                f"poolings; give at least {2**poolings}x{2**poolings}."
            )
        for stage, depth in enumerate(self.depths):
            for _ in range(depth):
                x = nn.relu(layers.norm(train)(layers.conv(next(widths), 3)(x)))
            if stage < poolings:
                x = layers.max_pool_2x2(x)
        x = layers.flatten(x)
        for units in self.hidden:
            x = nn.relu(nn.Dense(units)(x))
        return nn.Dense(self.num_classes)(x)


# The dense layers are those of Merkle et al. (2021) and of HYDRA (Sehwag et al. 2020).
VGG11 = functools.partial(VGG, depths=(1, 1, 2, 2, 2), hidden=(1024,))
VGG16 = functools.partial(VGG, depths=(2, 2, 3, 3, 3), hidden=(256, 256))
