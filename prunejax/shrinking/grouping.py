"""Groups of channels: what the same layers make, and which layers keep all of theirs."""

from typing import NamedTuple

import numpy as np

from prunejax import trees
from prunejax.shrinking.structure import Structure


class Group(NamedTuple):
    """Channels that the same layers make.

    Of one layer, of several whose outputs are added, or where one adds fewer channels to those of
    another, those of both and the others.

    Attributes:
      channels: `[n]` their numbers.
      makers: among the parameters the paths of those layers' weights, one for each axis that
        makes any of them.
    """

    channels: np.ndarray
    makers: tuple[str, ...]


def groups(traced: Structure) -> list[Group]:
    """All channels that can be removed."""
    makers_of: dict[int, list[tuple[str, int]]] = {
        c: [] for c in np.flatnonzero(traced.removable())
    }
    for maker, channels in made(traced).items():
        for channel in np.unique(channels).tolist():
            if channel in makers_of:
                makers_of[channel].append(maker)
    together: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for channel, of_it in makers_of.items():
        together.setdefault(tuple(of_it), []).append(channel)
    return [
        Group(np.array(channels), tuple(path.removeprefix("params/") for path, _ in of_them))
        for of_them, channels in together.items()
    ]


def made(traced: Structure) -> dict[tuple[str, int], np.ndarray]:
    """For each variable and axis along which it makes channels: those channels."""
    found = {}
    for path, variable in traced.variables.items():
        axes = zip(traced.channels.labels[variable], traced.along(path), strict=True)
        for axis, (own, channels) in enumerate(axes):
            if traced.channels.made[own].any():
                found[path, axis] = channels[traced.channels.made[own]]
    return found


def kept_whole(traced: Structure) -> dict[str, str]:
    """Weights of which no channel can be removed: their paths among the parameters, and why.

    The channels of a weight are those that it makes; of one that makes none, all positions of its
    axes. The weights of the last layer are always among them: theirs are the network's outputs.
    """
    removable, fixed, whole = traced.removable(), traced.channels.fixed, {}
    shapes = {path: np.empty(v.aval.shape, bool) for path, v in traced.variables.items()}
    for path in trees.weights(shapes):
        if not path.startswith("params/"):
            continue
        channels = np.concatenate(traced.along(path))
        made = traced.channels.made[np.concatenate(traced.channels.labels[traced.variables[path]])]
        own = channels[made] if made.any() else channels
        reason = next((fixed[c] for c in own.tolist() if c in fixed), None)
        if reason is not None and not removable[own].any():  # else nothing reads it
            whole[path.removeprefix("params/")] = reason
    return whole
