"""Labels: numbers for the positions of arrays' axes, collected while a network is traced."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend import core
from scipy import sparse

from prunejax import jaxprs

# The labels of one array: for each axis `[n]` integers, or None where no position may go away,
# unless it meets an axis where some do: then what is at those positions does not matter.
Labels = tuple[np.ndarray | None, ...]


class Channels(NamedTuple):
    """What belongs together in a network.

    Attributes:
      labels: for each variable of the program its `Labels`.
      channel: `[labels]` the channel that each label belongs to.
      fixed: reasons why a channel cannot be removed, by its number.
      made: `[labels]` booleans: positions where a layer makes a channel, a filter for example.
      read: `[labels]` booleans: positions where a layer reads a channel; of tied weights those
        where they make one too.
      contracted: `[labels]` booleans: positions that activations read from each other, so that the
        layers are not the only ones to read this channel.
      stage: `[labels]` the stage of its channel that each label belongs to: where a depthwise
        filter reads a channel another stage of the same one begins.
      filtered: `[n, 2]` labels: what a depthwise filter reads, and what it makes of that.
    """

    labels: dict[core.Var, Labels]
    channel: np.ndarray
    fixed: dict[int, str]
    made: np.ndarray
    read: np.ndarray
    contracted: np.ndarray
    stage: np.ndarray
    filtered: np.ndarray


class Tracer:
    """Collects labels, which of them are the same, and which must stay.

    Attributes:
      of_images: the variables that depend on the images; all others are weights, or made of them.
      made_of_weights, read_of_weights: positions that a product of weights makes and reads, such as
        a kernel of two factors. What reads channels of the images there makes none.
    """

    def __init__(self):
        self.of_images: set[core.Var] = set()
        self.labels: dict[core.Var, Labels] = {}
        self.number = 0
        self.same: list[tuple[np.ndarray, np.ndarray]] = []
        self.filtered: list[tuple[np.ndarray, np.ndarray]] = []
        self.fixed: list[tuple[np.ndarray, str]] = []
        self.made: list[np.ndarray] = []
        self.made_of_weights: list[np.ndarray] = []
        self.read: list[np.ndarray] = []
        self.read_of_weights: list[np.ndarray] = []
        self.contracted: list[np.ndarray] = []

    def fresh(self, size: int) -> np.ndarray:
        self.number += size
        return np.arange(self.number - size, self.number)

    def look_up(self, atom: Any) -> Labels:
        return self.labels[atom] if jaxprs.is_variable(atom) else (None,) * np.ndim(atom.val)

    def depends(self, atom: Any) -> bool:
        """Whether it depends on the images."""
        return jaxprs.is_variable(atom) and atom in self.of_images

    def join(self, first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
        """Says that two axes are the same, position by position."""
        if first is None or second is None:
            return second if first is None else first
        if first is not second:
            self.same.append((first, second))
        return first

    def is_made(self, labels: np.ndarray) -> bool:
        """Whether a layer makes any of these channels, as far as is known by now."""
        channel = self._connected(np.concatenate([_pairs(self.same), _pairs(self.filtered)]))
        return bool(np.isin(channel[labels], channel[self._marked(self.made)]).any())

    def filter(self, read: np.ndarray, made: np.ndarray) -> None:
        """Says that one is what a depthwise filter makes of the other, position by position."""
        self.filtered.append((read, made))

    def mark(self, axes: list[np.ndarray], labels: np.ndarray | None) -> None:
        if labels is not None:
            axes.append(labels)

    def fix(self, labels: np.ndarray | None, reason: str) -> None:
        if labels is not None:
            self.fixed.append((labels, reason))

    def fix_all(self, arrays: Sequence[Labels], reason: str) -> None:
        for array in arrays:
            for labels in array:
                self.fix(labels, reason)

    def fix_unknown(self, eqn: core.JaxprEqn, inputs: Sequence[Labels]) -> list[Labels]:
        """The outputs of an equation that there is no rule for."""
        self.fix_all(inputs, f"what {eqn.primitive.name!r} does to them is not known")
        return [(None,) * out.aval.ndim for out in eqn.outvars]

    def result(self) -> Channels:
        same, filtered = map(_pairs, (self.same, self.filtered))
        stage = self._connected(same)
        channel = self._connected(np.concatenate([same, filtered]))
        fixed: dict[int, str] = {}
        for labels, reason in self.fixed:
            for number in np.unique(channel[labels]):
                fixed.setdefault(int(number), reason)
        made, read, contracted = map(self._marked, (self.made, self.read, self.contracted))
        made |= self._marked(self.made_of_weights) & ~read
        read |= self._marked(self.read_of_weights) & ~made
        return Channels(self.labels, channel, fixed, made, read, contracted, stage, filtered)

    def _connected(self, pairs: np.ndarray) -> np.ndarray:
        """`[labels]` the number of the connected part that each label is in."""
        links = (np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1]))
        graph = sparse.coo_matrix(links, shape=(self.number, self.number))
        return sparse.csgraph.connected_components(graph, directed=False)[1]

    def _marked(self, axes: list[np.ndarray]) -> np.ndarray:
        marked = np.zeros(self.number, bool)
        for labels in axes:
            marked[labels] = True
        return marked


def _pairs(arrays: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """`[n, 2]`, the pairs of arrays put after one another."""
    columns = [np.concatenate([np.zeros(0, int), *(p[i].ravel() for p in arrays)]) for i in (0, 1)]
    return np.stack(columns, axis=1)
