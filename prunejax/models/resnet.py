"""Residual networks with basic blocks and the CIFAR stem (He et al. 2016, sections 3.3 and 4.2)."""

import functools

import flax.linen as nn
import jax


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, a 1x1 convolution where the shape changes."""

    features: int
    strides: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv = functools.partial(nn.Conv, self.features, use_bias=False)
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)

        y = nn.relu(norm()(conv((3, 3), self.strides, padding=1)(x)))
        y = norm()(conv((3, 3), padding=1)(y))
        if x.shape != y.shape:
            x = norm(name="shortcut_norm")(conv((1, 1), self.strides, name="shortcut")(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A 3x3 stem without pooling, stages of basic blocks, global average pooling.

    Attributes:
      num_classes: number of logits.
      depths: blocks in each stage; each stage after the first halves the resolution.
      width: channels of the first stage; they double from stage to stage.
    """

    num_classes: int
    depths: tuple[int, ...]
    width: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Conv(self.width, (3, 3), padding=1, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        for stage, depth in enumerate(self.depths):
            for block in range(depth):
                strides = 2 if stage > 0 and block == 0 else 1
                x = BasicBlock(self.width * 2**stage, strides)(x, train)
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))


ResNet8 = functools.partial(ResNet, depths=(1, 1, 1), width=16)
ResNet18 = functools.partial(ResNet, depths=(2, 2, 2, 2), width=64)
