"""What is kept of a network's activations from one query to the next."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from prunejax.incremental import spans
from prunejax.incremental.spans import Span

Spans = tuple[Span, Span]  # along the rows and the columns of a map
Margins = tuple[tuple[int, int], tuple[int, int]]

_NONE: Margins = ((0, 0), (0, 0))


class Entry(NamedTuple):
    """A kept array.

    Attributes:
      variable: of which it is the value.
      fill: what stands around a map.
      margins: how much of it, before and behind each of the two axes.
      window: where a query changes the map; None for what it changes entirely.
    """

    variable: core.Var
    fill: float
    margins: Margins
    window: Spans | None

    def padded(self, value: jax.Array) -> jax.Array:
        """The variable's value as it is kept."""
        if self.margins == _NONE:
            return value
        config = [(0, 0, 0), *((*margin, 0) for margin in self.margins), (0, 0, 0)]
        return lax.pad(value, jnp.asarray(self.fill, value.dtype), config)


class Place:
    """The corner of the change, of which all the tables are read once."""

    def __init__(self, corner: jax.Array):
        self.corner, self.known = corner, {}

    def at(self, axis: int, table: np.ndarray) -> Any:
        """What a table, `[P]` int32, says of the place of the change along an axis; a scalar."""
        if np.all(table == table[0]):
            return table[0]  # XLA makes something simpler of it
        key = (axis, table.tobytes())
        if key not in self.known:
            index = self.corner[axis]
            self.known[key] = lax.dynamic_index_in_dim(jnp.asarray(table), index, keepdims=False)
        return self.known[key]

    def starts(self, tables: Sequence[np.ndarray]) -> tuple[Any, ...]:
        """The first index of a window by axis of a map `[B, H, W, C]`."""
        zero = np.int32(0)
        return (zero, *(self.at(axis, table) for axis, table in enumerate(tables)), zero)

    def cut(self, x: jax.Array, window: Spans) -> jax.Array:
        """`[B, h, w, C]` out of `[B, H, W, C]`, at a window within it."""
        sizes = (x.shape[0], *(span.size for span in window), x.shape[3])
        if sizes == x.shape:
            return x
        return lax.dynamic_slice(x, self.starts([span.begin for span in window]), sizes)

    def written(self, x: jax.Array, new: jax.Array, window: Spans) -> jax.Array:
        """An array `[B, H, W, C]` with other values in a window within it."""
        if new.shape == x.shape:
            return new
        return lax.dynamic_update_slice(x, new, self.starts([span.begin for span in window]))


class Recorder:
    """Stands for what is kept while nobody knows yet what has to be, and notes what is read."""

    def __init__(self):
        self.fills: dict[core.Var, dict[float, Margins]] = {}

    def window(self, variable: core.Var, window: Spans, margins: Margins, fill: float):
        known = self.fills.setdefault(variable, {})
        if margins != _NONE:
            pairs = zip(known.get(fill, _NONE), margins, strict=True)
            known[fill] = tuple(tuple(map(max, one, other)) for one, other in pairs)
        batch, *_, channels = variable.aval.shape
        return jnp.zeros((batch, *(span.size for span in window), channels), variable.aval.dtype)

    def whole(self, variable: core.Var):
        self.fills.setdefault(variable, {})
        return jnp.zeros(variable.aval.shape, variable.aval.dtype)


class Memory:
    """The kept arrays, in the order of their entries, as they were before the change."""

    def __init__(self, entries: Sequence[Entry], arrays: Sequence[jax.Array], place: Place):
        self.entries, self.arrays, self.place = entries, arrays, place

    def window(self, variable: core.Var, window: Spans, margins: Margins, fill: float):
        """`[B, h, w, C]`: a window of a map, which may reach beyond its edges.

        Args:
          variable: the map.
          window: in the map's coordinates.
          margins: how far the window reaches beyond the edges, at most.
          fill: what is to stand there.
        """
        i = self._index(variable, None if margins == _NONE else fill)
        pairs = zip(window, self.entries[i].margins, strict=True)
        inside = tuple(spans.shifted(span, before) for span, (before, _) in pairs)
        return self.place.cut(self.arrays[i], inside)

    def whole(self, variable: core.Var):
        """An array that is not a map."""
        return self.arrays[self._index(variable, None)]

    def _index(self, variable: core.Var, fill: float | None) -> int:
        for i, entry in enumerate(self.entries):
            if entry.variable is variable and fill in (None, entry.fill):
                return i
        raise KeyError(variable)
