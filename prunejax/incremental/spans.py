"""Where a window lies along one axis of a map, tabulated for every place the change may have."""

from typing import NamedTuple

import numpy as np


class Span(NamedTuple):
    """A stretch of an axis that moves with the change and keeps its length.

    Attributes:
      begin: `[P]` int32, where it begins for each of the P places of the change. Of what is read,
        some may lie before the axis (negative) or behind it: padding.
      size: positions in it, for all of the places.
    """

    begin: np.ndarray
    size: int


class Sweep(NamedTuple):
    """What a convolution, a pooling or a slice reads along an axis.

    Output o reads the inputs `stride * o - low + dilation * j` for j = 0, ..., kernel - 1.
    """

    kernel: int
    stride: int
    dilation: int
    low: int
    outputs: int


def moving(length: int, size: int) -> Span:
    """The change itself: one of `size` positions, at each place of an axis where it fits."""
    return Span(np.arange(length - size + 1, dtype=np.int32), size)


def entire(like: Span, length: int) -> Span:
    """A whole axis, for as many places of the change as another span has."""
    return Span(np.zeros_like(like.begin), length)


def shifted(span: Span, by: int) -> Span:
    """The same stretch of an axis that has `by` positions more in front."""
    return Span(span.begin + np.int32(by), span.size)


def reached(span: Span, sweep: Sweep) -> Span:
    """The outputs that read anything of a span of the inputs; a few more where others are longer.

    Some places of the change may reach none, between the strides: there any output will do.
    """
    reads = _reads(sweep, np.arange(sweep.outputs))
    begin = span.begin[:, None, None]
    hit = np.any((reads >= begin) & (reads < begin + span.size), axis=2)  # [P, outputs]
    first, last = np.argmax(hit, axis=1), np.argmax(hit[:, ::-1], axis=1)
    end = np.where(hit.any(axis=1), sweep.outputs - last, first)
    return _of_one_size(first, end, 0, sweep.outputs)


def read(span: Span, sweep: Sweep) -> Span:
    """The inputs from the first to the last that a span of the outputs reads."""
    extent = (span.size - 1) * sweep.stride + (sweep.kernel - 1) * sweep.dilation + 1
    return Span(np.int32(sweep.stride) * span.begin - np.int32(sweep.low), extent)


def union(one: Span, other: Span, first: int, end: int) -> Span:
    """A span that contains two others, within the positions `first`, ..., `end` - 1."""
    begin = np.minimum(one.begin, other.begin)
    ends = np.maximum(one.begin + one.size, other.begin + other.size)
    return _of_one_size(begin, ends, first, end)


def equal(one: Span, other: Span) -> bool:
    """Whether two spans are the same at every place of the change."""
    return one.size == other.size and np.array_equal(one.begin, other.begin)


def margins(span: Span, length: int) -> tuple[int, int]:
    """How far a span reaches beyond the two ends of an axis, at most."""
    before, behind = -int(span.begin.min()), int(span.begin.max()) + span.size - length
    return max(before, 0), max(behind, 0)


def _of_one_size(begin: np.ndarray, end: np.ndarray, first: int, last: int) -> Span:
    """As long as the longest; what would end behind `last` begins earlier."""
    size = max(int(np.max(end - begin)), 1)
    return Span(np.clip(begin, first, last - size).astype(np.int32), size)


def _reads(sweep: Sweep, outputs: np.ndarray) -> np.ndarray:
    """`[outputs, kernel]`: the inputs that each output reads."""
    offsets = sweep.dilation * np.arange(sweep.kernel) - sweep.low
    return sweep.stride * outputs[:, None] + offsets
