"""Widths that are multiples of a number, as hardware likes them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from prunejax.shrinking import grouping
from prunejax.shrinking.structure import Structure


def rounded_up(
    traced: Structure, groups: Sequence[np.ndarray], kept: np.ndarray, multiple: int
) -> np.ndarray:
    """`[channels]` booleans: what is kept, and as many more channels as make round widths.

    The width of a layer is how many positions are left on an axis along which it makes channels:
    several of one channel in a grouped convolution, say, and those of channels that must stay. Each
    becomes a multiple, or stays whole.

    Args:
      traced: the network's structure.
      groups: of `grouping.groups` the channels of each, in the order in which they come back.
      kept: `[channels]` booleans.
      multiple: at least 1.
    """
    axes = [traced.along(path)[axis] for path, axis in grouping.made(traced)]
    # Those of most layers first: what fits them all is found among the others then.
    groups = sorted(groups, key=lambda group: -sum(np.isin(group, axis).any() for axis in axes))
    waiting = np.zeros(traced.number, bool)
    waiting[np.concatenate([np.zeros(0, int), *groups])] = True
    kept = kept.copy()
    for group in groups:
        waiting[group] = False
        own = [axis for axis in axes if np.isin(axis, group).any() and not waiting[axis].any()]
        kept[_to_bring_back(group, kept, own, multiple)] = True
    while uneven := [axis for axis in axes if not _is_round(axis, kept[axis].sum(), multiple)]:
        kept[np.concatenate(uneven)] = True  # left whole
    return kept


def _to_bring_back(
    group: np.ndarray, kept: np.ndarray, axes: Sequence[np.ndarray], multiple: int
) -> np.ndarray:
    """As many of the group's removed channels, the first ones, as make all axes round, or none."""
    gone = group[~kept[group]]
    fits = np.ones(len(gone) + 1, bool)
    for axis in axes:
        positions = np.bincount(axis, minlength=len(kept))
        widths = kept[axis].sum() + np.concatenate([[0], np.cumsum(positions[gone])])
        fits &= _is_round(axis, widths, multiple)
    return gone[: fits.argmax()]


def _is_round(axis: np.ndarray, width: Any, multiple: int) -> Any:
    return (width % multiple == 0) | (width == len(axis))
