"""MobileNetV2: inverted residuals of depthwise convolutions (Sandler et al. 2018), no dropout."""

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax

from prunejax import names
from prunejax.models import resizing
from prunejax.models.layers import conv, norm


class Stage(NamedTuple):
    """A line of the paper's table 2: expansion, output channels, blocks, strides of the first."""

    expansion: int
    channels: int
    depth: int
    strides: int


STAGES = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)
STEM, HEAD = 32, 1280
DEPTHS = tuple(stage.depth for stage in STAGES)

# Strides of the stem and of the second stage: small images keep their resolution there.
STEMS = {"cifar": (1, 1), "imagenet": (2, 2)}


class InvertedResidual(nn.Module):
    """1x1 to many channels, 3x3 on each of them alone, 1x1 to few; linear at its end.

    Attributes:
      features: output channels.
      expanded: channels of the 3x3 convolution, or None: those of the input, without the first 1x1.
      strides: of the 3x3 convolution.
      residual: whether the input is added to the output.
    """

    features: int
    expanded: int | None
    strides: int
    residual: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = x
        if self.expanded is not None:
            y = conv(self.expanded, 1, name="expand")(y)
            y = nn.relu6(norm(train, "expand_norm")(y))
        channels = y.shape[-1]
        y = conv(channels, 3, self.strides, groups=channels, name="depthwise")(y)
        y = nn.relu6(norm(train, "depthwise_norm")(y))
        y = norm(train, "project_norm")(conv(self.features, 1, name="project")(y))
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """A 3x3 stem, seven stages of inverted residuals, a 1x1 head, average pooling, a dense layer.

    All blocks of a stage but its first add their input to their output.

    Attributes:
      num_classes: number of logits.
      width: multiplies the nominal channels, which are rounded to multiples of 8; those of the
        head are only ever multiplied by more than one.
      stem: "cifar" (32x32 images end as 4x4 maps) or "imagenet" (224x224 as 7x7).
      widths: channels in fact, of the stem, of each stage's output and of the head; nominal by
        default.
      expanded: channels inside each block but the first, which has those of the stem; nominal by
        default.

    Raises:
      ValueError: an unknown stem, or `widths` or `expanded` of a wrong length.
    """

    num_classes: int
    width: float = 1.0
    stem: str = "cifar"
    widths: tuple[int, ...] | None = None
    expanded: tuple[int, ...] | None = None

    @nn.nowrap
    def nominal_widths(self) -> tuple[int, ...]:
        """Channels of the stem, of each stage and of the head before any pruning."""
        stages = (round_to_8(stage.channels * self.width) for stage in STAGES)
        return (round_to_8(STEM * self.width), *stages, round_to_8(HEAD * max(1.0, self.width)))

    @nn.nowrap
    def nominal_expanded(self) -> tuple[int, ...]:
        """Channels inside each block but the first before any pruning."""
        before, expanded = self.nominal_widths()[0], []
        for stage, features in zip(STAGES, self.nominal_widths()[1:-1], strict=True):
            for _ in range(stage.depth):
                expanded.append(stage.expansion * before)
                before = features
        return tuple(expanded[1:])

    @nn.nowrap
    def resized(self, shapes: Mapping[str, tuple[int, ...]]) -> "MobileNetV2":
        """The same network with the channel counts of smaller parameters.

        A stage has one width, for its blocks' outputs are added up; what is inside a block is
        free, save that the first has the stem's channels. Only channel counts may differ, not
        the blocks.

        Args:
          shapes: shapes of all the parameters by path.

        Raises:
          ValueError: a kernel is missing, or the blocks of a stage end in different widths.
        """
        blocks = [f"InvertedResidual_{i}" for i in range(sum(DEPTHS))]
        ends = iter(resizing.outputs(shapes, [f"{block}/project" for block in blocks]))
        stages = [
            resizing.common(list(itertools.islice(ends, depth)), f"Stage {stage}")
            for stage, depth in enumerate(DEPTHS)
        ]
        stem, head = resizing.outputs(shapes, ["Conv_0", "Conv_1"])
        expanded = resizing.outputs(shapes, [f"{block}/depthwise" for block in blocks[1:]])
        return self.clone(widths=(stem, *stages, head), expanded=expanded)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        stem, *stages, head = resizing.chosen("widths", self.widths, self.nominal_widths())
        inside = resizing.chosen("expanded", self.expanded, self.nominal_expanded())
        expanded = iter((None, *inside))  # the first block expands nothing
        first, second = names.lookup("stem", self.stem, STEMS)

        x = nn.relu6(norm(train)(conv(stem, 3, first)(x)))
        for number, (stage, features) in enumerate(zip(STAGES, stages, strict=True)):
            strides = second if number == 1 else stage.strides
            for block in range(stage.depth):
                x = InvertedResidual(
                    features, next(expanded), strides if block == 0 else 1, residual=block > 0
                )(x, train)
        x = nn.relu6(norm(train)(conv(head, 1)(x)))
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))


def round_to_8(channels: float) -> int:
    """The nearest multiple of 8, at least 8, or the next one where that takes more than a tenth."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest
