"""Which channels a mask of the parameters leaves."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from prunejax import masks, trees
from prunejax.shrinking import grouping, structure
from prunejax.shrinking.labels import Channels
from prunejax.shrinking.structure import Structure


def kept_channels(traced: Structure, params: Any, mask: Any) -> np.ndarray:
    """`[channels]` booleans: those that a mask of the parameters leaves.

    Args and errors as in `smaller.shrink`.
    """
    kept, leaves = left_by(traced, params, mask), trees.flatten(mask)
    for path, axis, own, left in _said_of_axes(traced, mask):
        if np.size(leaves[path]) == left.size:  # the mask removes whole slices along this axis
            _refuse_fixed(traced, path, axis, own[~np.broadcast_to(left, own.shape)])
    for (path, _), channels in grouping.made(traced).items():
        if not kept[channels].any():
            raise ValueError(
                f"mask removes all {len(channels)} channels that {path.removeprefix('params/')!r} "
                "makes; keep at least one (the collapse guard of pruning does)."
            )
    return kept


def left_by(traced: Structure, params: Any, mask: Any) -> np.ndarray:
    """As `kept_channels`, for masks that may remove also what cannot go, or all of a layer.

    Raises:
      ValueError: a mask of another structure, or parameters of another network.
    """
    masks.validate(params, mask)
    structure.require_traced(traced, params)
    alive = np.ones(len(traced.channels.channel), bool)
    for _, _, own, left in _said_of_axes(traced, mask):
        alive[own] = left
    return ~_gone(traced, alive)


def _said_of_axes(
    traced: Structure, mask: Any
) -> Iterator[tuple[str, int, np.ndarray, np.ndarray]]:
    """(path, axis, its labels `[n]`, what is left at each, `[n]` or `[1]`) where the mask tells."""
    for path, leaf in trees.flatten(mask).items():
        labels = traced.channels.labels[traced.variables[f"params/{path}"]]
        sides = zip(labels, left_along(leaf, len(labels)), strict=True)
        for axis, (own, left) in enumerate(sides):
            # One number for all of a layer says the same of each channel that it makes.
            of_layer = np.size(leaf) == 1 and traced.channels.made[own].any()
            if left.size == own.size or of_layer:
                yield path, axis, own, left


def _refuse_fixed(traced: Structure, path: str, axis: int, labels: np.ndarray) -> None:
    for channel in traced.channels.channel[labels]:
        if int(channel) in traced.channels.fixed:
            raise ValueError(
                f"mask removes positions of axis {axis} of {path!r}, which cannot be removed: "
                f"{traced.channels.fixed[int(channel)]}. Exclude this path from pruning."
            )


def _gone(traced: Structure, alive: np.ndarray) -> np.ndarray:
    """`[channels]`: which are removed, given which positions `[labels]` are left.

    Those of which layers read no stage that holds anything: it is dead, or its readers are gone.
    """
    channels = traced.channels
    stages = int(channels.stage.max(initial=-1)) + 1

    def those_with(labels):
        return np.bincount(channels.stage[labels], minlength=stages) > 0

    dead, compared = _dead(channels, alive, those_with), those_with(channels.contracted)
    known = those_with(channels.read) | compared | dead
    holds = (those_with(channels.read & alive) | compared) & ~dead

    def any_stage(which):
        return np.bincount(channels.channel[which[channels.stage]], minlength=traced.number) > 0

    return any_stage(known) & ~any_stage(holds) & traced.removable()


def _dead(
    channels: Channels, alive: np.ndarray, those_with: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """`[stages]`: those of which all filters are gone that make them.

    Depthwise ones may be left where all that they read is dead.
    """
    read, made = channels.filtered.T
    whole = channels.made & alive
    whole[made] = False
    dead = those_with(channels.made) & ~those_with(whole)
    while True:
        feeding = whole.copy()
        # A filter that is used twice has several entries.
        np.logical_or.at(feeding, made, alive[made] & ~dead[channels.stage[read]])
        if not (fed := dead & those_with(feeding)).any():
            return dead
        dead &= ~fed


def left_along(leaf: Any, ndim: int) -> list[np.ndarray]:
    """For each axis `[n]`, or `[1]` where the mask does not tell: what is left at each position."""
    leaf = np.asarray(leaf).reshape(np.shape(leaf) or (1,) * ndim)
    return [leaf.any(axis=tuple(a for a in range(ndim) if a != axis)) for axis in range(ndim)]
