"""Wide residual networks of pre-activation blocks (Zagoruyko & Komodakis 2016), no dropout."""

import functools

import flax.linen as nn
import jax

from prunejax.models.layers import conv, norm
from prunejax.models.resnet import Block, ResNet, carried_over


class WideBlock(Block):
    """Twice batch normalisation, ReLU and a 3x3 convolution, and a shortcut that stays linear.

    A projected shortcut reads the normalised input, as in the authors' code.
    """

    convs = 2
    pre_activation = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = nn.relu(norm(train)(x))
        if self.project:
            x = conv(self.features, 1, self.strides, name="shortcut")(y)
        else:
            x = carried_over(self, x)
        y = nn.relu(norm(train)(conv(self.inner[0], 3, self.strides)(y)))
        return x + conv(self.features, 3)(y)


# WRN-d-k has d = 6 n + 4 layers for n blocks a stage, and k times the 16 channels of the stem.
WRN28x4 = functools.partial(ResNet, depths=(4, 4, 4), width=64, stem_width=16, block=WideBlock)
WRN28x10 = functools.partial(ResNet, depths=(4, 4, 4), width=160, stem_width=16, block=WideBlock)
