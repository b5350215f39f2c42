"""Residual networks with basic or bottleneck blocks (He et al. 2016, sections 3.3 and 4)."""

import functools
import itertools
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from prunejax import names
from prunejax.models import resizing
from prunejax.models.layers import conv, norm


class Block(nn.Module):
    """What a residual block is told; its convolutions are called Conv_0, Conv_1, ... in order.

    Attributes:
      features: output channels.
      inner: output channels of each convolution but the last.
      strides: by which the resolution shrinks.
      project: whether the shortcut is a 1x1 convolution, else `carried_over`. Given rather than
        found by comparing shapes, so that a network keeps its layers when pruning changes its
        channel counts.
    """

    features: int
    inner: tuple[int, ...]
    strides: int
    project: bool

    convs: ClassVar[int]  # in its residual branch
    expansion: ClassVar[int] = 1  # output channels for each of the stage's width
    pre_activation: ClassVar[bool] = False  # whether the network ends with norm and ReLU instead


class BasicBlock(Block):
    """Two 3x3 convolutions."""

    convs = 2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = nn.relu(norm(train)(conv(self.inner[0], 3, self.strides)(x)))
        y = norm(train)(conv(self.features, 3)(y))
        return nn.relu(_shortcut(self, x, train) + y)


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions; the stride is in the 3x3 one, as in published weights."""

    convs = 3
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        first, second = self.inner
        y = nn.relu(norm(train)(conv(first, 1)(x)))
        y = nn.relu(norm(train)(conv(second, 3, self.strides)(y)))
        y = norm(train)(conv(self.features, 1)(y))
        return nn.relu(_shortcut(self, x, train) + y)


def _shortcut(block: Block, x: jax.Array, train: bool) -> jax.Array:
    if not block.project:
        return carried_over(block, x)
    x = conv(block.features, 1, block.strides, name="shortcut")(x)
    return norm(train, name="shortcut_norm")(x)


def carried_over(block: Block, x: jax.Array) -> jax.Array:
    """The shortcut without parameters: `[B, H, W, C]` -> `[B, H / strides, W / strides, features]`.

    The input itself where the shapes agree, else every `strides`-th pixel of each row and column,
    and behind the channels as many zeros as are missing (option A of He et al. 2016, sections 3.3
    and 4.2, who do not say on which side). Code that puts half of the zeros in front has the same
    networks with their channels in another order. With all of them behind, the widths alone tell
    which channels meet: what is left of such a network when some are removed is one again.
    """
    if block.strides > 1:
        x = x[:, :: block.strides, :: block.strides]
    zeros = block.features - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, zeros))) if zeros else x


STEMS = {"cifar": (3, 1), "imagenet": (7, 2)}  # size and strides of the first convolution
SHORTCUTS = {"projection": True, "padding": False}  # whether they have parameters


class ResNet(nn.Module):
    """A stem, stages of residual blocks, global average pooling and a dense layer.

    The first block of each stage but the first halves the resolution, so its shortcut changes the
    shape. So does that of the first stage where the nominal channels of the stem are not those of
    the stage; all the others are identities.

    Attributes:
      num_classes: number of logits.
      depths: blocks in each stage.
      width: nominal channels of the first stage's 3x3 convolutions; they double from stage to
        stage.
      stem_width: nominal channels of the stem, `width` by default.
      block: the kind of block.
      stem: "cifar" (3x3, full resolution) or "imagenet" (7x7 of stride 2, and max pooling over
        3x3 of stride 2).
      shortcut: what changes the shape: "projection" (a 1x1 convolution, option B of He et al.) or
        "padding" (`carried_over`, option A: every second pixel and channels of zeros).
      widths: channels in fact, of the stem and of each stage's output; nominal by default.
      inner: for each block in order, the channels inside it in fact; nominal by default.

    Raises:
      ValueError: an unknown stem or shortcut, `widths` or `inner` of wrong lengths, a first stage
        of identities whose width is not that of the stem, or widths that shrink under "padding".
    """

    num_classes: int
    depths: tuple[int, ...]
    width: int
    stem_width: int | None = None
    block: type[Block] = BasicBlock
    stem: str = "cifar"
    shortcut: str = "projection"
    widths: tuple[int, ...] | None = None
    inner: tuple[tuple[int, ...], ...] | None = None

    @nn.nowrap
    def nominal_widths(self) -> tuple[int, ...]:
        """Channels of the stem and of each stage before any pruning."""
        stages = (self.block.expansion * self.width * 2**s for s in range(len(self.depths)))
        return (self.width if self.stem_width is None else self.stem_width, *stages)

    @nn.nowrap
    def nominal_inner(self) -> tuple[tuple[int, ...], ...]:
        """Channels inside each block before any pruning."""
        return tuple(
            (self.width * 2**stage,) * (self.block.convs - 1)
            for stage, depth in enumerate(self.depths)
            for _ in range(depth)
        )

    @nn.nowrap
    def resized(self, shapes: Mapping[str, tuple[int, ...]]) -> "ResNet":
        """The same network with the channel counts of smaller parameters.

        Every stage has one width, for its blocks' outputs are added up; that of a first stage
        of identities alone is the stem's. What is inside a block is free. Only channel counts
        may differ, not the blocks.

        Args:
          shapes: shapes of all the parameters by path.

        Raises:
          ValueError: a kernel is missing, or the blocks of a stage end in different widths.
        """
        last = self.block.convs - 1
        blocks = [f"{self.block.__name__}_{i}" for i in range(sum(self.depths))]
        inner = [
            resizing.outputs(shapes, [f"{block}/Conv_{i}" for i in range(last)]) for block in blocks
        ]
        ends = iter(resizing.outputs(shapes, [f"{block}/Conv_{last}" for block in blocks]))
        stages = [
            resizing.common(list(itertools.islice(ends, depth)), f"Stage {stage}")
            for stage, depth in enumerate(self.depths)
        ]
        widths = (*resizing.outputs(shapes, ["Conv_0"]), *stages)
        return self.clone(widths=widths, inner=tuple(inner))

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        nominal = self.nominal_widths()
        stem, *stages = resizing.chosen("widths", self.widths, nominal)
        inner = iter(resizing.chosen("inner", self.inner, self.nominal_inner()))
        changes_first = nominal[0] != nominal[1]
        if not changes_first and stem != stages[0]:
            raise ValueError(
                f"widths begins with {stem} and {stages[0]}; the first stage adds its input to "
                "its output: make them equal, or give a stem_width for a shortcut between them."
            )
        projects = names.lookup("shortcut", self.shortcut, SHORTCUTS)
        for before, after in itertools.pairwise((stem, *stages)):
            if not projects and before > after:
                raise ValueError(
                    f"widths has {after} channels after {before}, and shortcut {self.shortcut!r} "
                    "can only add some: take 'projection'."
                )

        size, strides = names.lookup("stem", self.stem, STEMS)
        x = conv(stem, size, strides)(x)
        if not self.block.pre_activation:
            x = nn.relu(norm(train)(x))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, (features, depth) in enumerate(zip(stages, self.depths, strict=True)):
            for number in range(depth):
                strides = 2 if stage > 0 and number == 0 else 1
                project = projects and number == 0 and (stage > 0 or changes_first)
                x = self.block(features, next(inner), strides, project)(x, train)
        if self.block.pre_activation:
            x = nn.relu(norm(train)(x))
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))


# Those of the paper for CIFAR, of 20, 56 and 110 layers, have shortcuts without parameters.
ResNet8 = functools.partial(ResNet, depths=(1, 1, 1), width=16)
ResNet18 = functools.partial(ResNet, depths=(2, 2, 2, 2), width=64)
ResNet20 = functools.partial(ResNet, depths=(3, 3, 3), width=16, shortcut="padding")
ResNet50 = functools.partial(ResNet, depths=(3, 4, 6, 3), width=64, block=Bottleneck)
ResNet56 = functools.partial(ResNet, depths=(9, 9, 9), width=16, shortcut="padding")
ResNet110 = functools.partial(ResNet, depths=(18, 18, 18), width=16, shortcut="padding")
