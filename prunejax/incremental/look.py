"""Runs a network's equations for images that differ from the kept ones in one window."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend import core

from prunejax import jaxprs
from prunejax.incremental import spans
from prunejax.incremental.memory import Memory, Place, Recorder, Spans


class Local(NamedTuple):
    """A map `[B, H, W, C]` that agrees with the kept one outside of a window.

    Attributes:
      window: where it may differ.
      value: `[B, h, w, C]`, the new values in the window; None if there is a view.
      view: gives the new values in any window of the map, of what has them from another map.
    """

    window: Spans
    value: jax.Array | None
    view: Callable[[Spans], jax.Array] | None = None


class Flattened(NamedTuple):
    """`[B, H W C]`: a map that is changed in a window, and the equation that reshapes it."""

    eqn: core.JaxprEqn


class Whole(NamedTuple):
    """What may have changed everywhere: its new value."""

    value: jax.Array


class Look:
    """The values of a program's variables; those that do not depend on the images are arrays.

    Attributes:
      memory: what is known from before the change.
      place: where the change is.
      values: what is known by now.
    """

    def __init__(self, memory: Memory | Recorder, place: Place, values: dict[core.Var, Any]):
        self.memory, self.place, self.values = memory, place, values
        self.made_whole: dict[core.Var, jax.Array] = {}

    def step(self, eqn: core.JaxprEqn, rule: Callable | None) -> None:
        """Evaluates an equation.

        Args:
          eqn: its inputs are known.
          rule: `(look, equation)` -> the state of the only output, or None where that would not
            pay or is not known to be right.
        """
        state = None
        if rule is not None and any(isinstance(self.of(a), Local | Flattened) for a in eqn.invars):
            state = rule(self, eqn)
        if state is not None:
            self.values[eqn.outvars[0]] = state
            return
        outputs = jaxprs.evaluate(eqn, [self.whole(atom) for atom in eqn.invars])
        changed = any(map(self.is_changed, eqn.invars))
        outputs = map(Whole, outputs) if changed else outputs
        self.values.update(zip(eqn.outvars, outputs, strict=True))

    def of(self, atom: Any) -> Any:
        """The state of a variable, or the value of a literal."""
        return self.values[atom] if jaxprs.is_variable(atom) else atom.val

    def is_changed(self, atom: Any) -> bool:
        """Whether it depends on the images."""
        return isinstance(self.of(atom), Local | Flattened | Whole)

    def whole(self, atom: Any) -> Any:
        """The new value, all of it."""
        state = self.of(atom)
        if isinstance(state, Whole):
            return state.value
        if not isinstance(state, Local | Flattened):
            return state
        if atom not in self.made_whole:
            if isinstance(state, Flattened):
                (made,) = jaxprs.evaluate(state.eqn, [self.whole(state.eqn.invars[0])])
            else:
                pairs = zip(state.window, atom.aval.shape[1:3], strict=True)
                made = self.around(atom, tuple(spans.entire(*pair) for pair in pairs))
            self.made_whole[atom] = made
        return self.made_whole[atom]

    def around(self, variable: core.Var, wanted: Spans, fill: float = 0.0) -> jax.Array:
        """`[B, h, w, C]`: the new values of a map that is `Local`, in any window.

        Args:
          variable: the map.
          wanted: the window, in the map's coordinates; it may reach beyond the edges.
          fill: what stands there.
        """
        local, lengths = self.values[variable], variable.aval.shape[1:3]
        margins = tuple(spans.margins(*pair) for pair in zip(wanted, lengths, strict=True))
        inside = not any(map(any, margins))
        if local.view is not None and inside:
            return local.view(wanted)
        value = local.view(local.window) if local.value is None else local.value
        united = tuple(
            spans.union(one, other, -before, length + behind)
            for one, other, (before, behind), length in zip(
                local.window, wanted, margins, lengths, strict=True
            )
        )
        if not same(united, local.window):
            old = self.memory.window(variable, united, margins, fill)
            value = self.place.written(old, value, relative(local.window, united))
        return value if same(united, wanted) else self.place.cut(value, relative(wanted, united))

    def within(self, atom: Any, window: Spans) -> Any:
        """A window of a map, of a constant that has one number for all positions, or a scalar."""
        state = self.of(atom)
        if isinstance(state, Local):
            return self.around(atom, window)
        if not atom.aval.ndim:
            return state
        pairs = zip(window, atom.aval.shape[1:3], strict=True)
        return self.place.cut(
            state, tuple(spans.entire(s, 1) if length == 1 else s for s, length in pairs)
        )

    def change(self, variable: core.Var) -> jax.Array:
        """`[B, h, w, C]`: what has been added to a map in its window."""
        window = self.values[variable].window
        old = self.memory.window(variable, window, ((0, 0), (0, 0)), 0.0)
        return self.around(variable, window) - old

    def fresh(self, variable: core.Var) -> jax.Array:
        """What is new of a variable: a map's window, or all of the value."""
        state = self.values[variable]
        return self.around(variable, state.window) if isinstance(state, Local) else state.value


def same(one: Spans, other: Spans) -> bool:
    """Whether two windows are the same wherever the change is."""
    return all(map(spans.equal, one, other))


def relative(window: Spans, to: Spans) -> Spans:
    """A window in the coordinates of one that contains it."""
    pairs = zip(window, to, strict=True)
    return tuple(spans.Span(span.begin - origin.begin, span.size) for span, origin in pairs)
