"""How single equations are evaluated where a window of their operands has changed.

A rule gets the `Look` and an equation with one output and with an operand that is `Local` or
`Flattened`. It returns the output's state, or None: then all is evaluated as usual.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from prunejax import jaxprs
from prunejax.canonical.stored import stored
from prunejax.incremental import spans
from prunejax.incremental.look import Flattened, Local, Look, Whole
from prunejax.incremental.memory import Spans
from prunejax.incremental.spans import Sweep

MOST = 0.75  # share of a map above which a window does not pay

_UNMOVED = (0, 3, 1, 2)  # axes of batch, channels, rows and columns of [B, H, W, C]


def rule(eqn: core.JaxprEqn) -> Callable[[Look, core.JaxprEqn], Any] | None:
    """The rule for an equation."""
    return _pointwise if jaxprs.is_elementwise(eqn) else _RULES.get(eqn.primitive.name)


def pays(window: Spans, shape: Sequence[int]) -> bool:
    """Whether a window is small enough a part of a map `[B, H, W, C]`."""
    rows, columns = window
    return rows.size * columns.size <= MOST * shape[1] * shape[2]


def _pointwise(look: Look, eqn: core.JaxprEqn) -> Local | None:
    """Each number of the result is made of those at the same row and column."""
    shape, maps = eqn.outvars[0].aval.shape, []
    for atom in eqn.invars:
        own, state = atom.aval.shape, look.of(atom)
        if isinstance(state, Local) and len(shape) == 4 and own[1:3] == shape[1:3]:
            maps.append(state.window)
        elif look.is_changed(atom) or len(own) not in (0, 4):
            return None  # as a gate, one number for all positions
    window = maps[0]
    for other in maps[1:]:
        pairs = zip(window, other, (0, 0), shape[1:3], strict=True)
        window = tuple(spans.union(*pair) for pair in pairs)
    if not pays(window, shape):
        return None
    inputs = [look.within(atom, window) for atom in eqn.invars]
    return Local(window, jaxprs.evaluate(eqn, inputs)[0])


def _concatenate(look: Look, eqn: core.JaxprEqn) -> Local | None:
    return _pointwise(look, eqn) if eqn.params["dimension"] == 3 else None


def _pad(look: Look, eqn: core.JaxprEqn) -> Local | None:
    config = eqn.params["padding_config"]
    if not _is_map(look, eqn) or any(config[0]):
        return None
    if any(between or min(low, high) < 0 for low, high, between in config[1:3]):
        return None
    state = look.of(eqn.invars[0])
    window = tuple(spans.shifted(s, c[0]) for s, c in zip(state.window, config[1:3], strict=True))
    if not pays(window, eqn.outvars[0].aval.shape):
        return None
    value, edge = look.around(eqn.invars[0], state.window), look.whole(eqn.invars[1])
    config = (config[0], (0, 0, 0), (0, 0, 0), config[3])
    return Local(window, jaxprs.evaluate(eqn, [value, edge], padding_config=config)[0])


def _slice(look: Look, eqn: core.JaxprEqn) -> Local | None:
    """Not computed until it is read: the map that it is of is kept, and the slice need not be."""
    source, shape = eqn.invars[0], eqn.outvars[0].aval.shape
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(shape)
    if not _is_map(look, eqn) or shape[0] != source.aval.shape[0]:
        return None
    sweeps = [Sweep(1, strides[axis], 1, -starts[axis], shape[axis]) for axis in (1, 2)]
    window = _reached(look, source, sweeps)

    def view(wanted):
        x = look.around(source, tuple(map(spans.read, wanted, sweeps)))
        first, end = (0, 0, 0, starts[3]), (*x.shape[:3], limits[3])
        return jaxprs.evaluate(eqn, [x], start_indices=first, limit_indices=end)[0]

    return Local(window, None, view) if pays(window, shape) else None


def _convolution(look: Look, eqn: core.JaxprEqn) -> Local | None:
    params, kernel = eqn.params, eqn.invars[1]
    numbers = params["dimension_numbers"]
    if not _is_map(look, eqn) or not numbers.lhs_spec == numbers.out_spec == _UNMOVED:
        return None
    if set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
        return None
    sides = [kernel.aval.shape[axis] for axis in numbers.rhs_spec[2:]]
    rest = (params["window_strides"], params["rhs_dilation"], params["padding"])
    return _swept(look, eqn, 0.0, ((0, 0), (0, 0)), zip(sides, *rest, strict=True))


def _pooling(identity: Callable[[Any], float]) -> Callable[[Look, core.JaxprEqn], Local | None]:
    """The rule for a pooling.

    Args:
      identity: dtype -> the number that stands beyond the edges and has no part in the result.
    """

    def pooling(look, eqn):
        names = ("window_dimensions", "window_strides", "window_dilation", "padding")
        batch, *space, channels = zip(*(eqn.params[name] for name in names), strict=True)
        if not _is_map(look, eqn) or set(eqn.params["base_dilation"]) != {1}:
            return None
        if {batch, channels} != {(1, 1, 1, (0, 0))}:
            return None
        fill = identity(eqn.invars[0].aval.dtype)
        return _swept(look, eqn, fill, ((0, 0),) * 4, space)

    return pooling


def _swept(look, eqn, fill, no_padding, axes) -> Local | None:
    """What reads a neighbourhood: `axes` hold kernel, stride, dilation and padding."""
    shape = eqn.outvars[0].aval.shape
    sweeps = [
        Sweep(kernel, stride, dilation, low, outputs)
        for (kernel, stride, dilation, (low, _)), outputs in zip(axes, shape[1:3], strict=True)
    ]
    window = _reached(look, eqn.invars[0], sweeps)
    if not pays(window, shape):
        return None
    x = look.around(eqn.invars[0], tuple(map(spans.read, window, sweeps)), fill)
    kernel = [look.whole(atom) for atom in eqn.invars[1:]]  # of a pooling none
    # Else XLA works out anew where the window lies for each number that a convolution reads.
    inputs = [stored(x, *kernel), *kernel] if kernel else [x]
    return Local(window, jaxprs.evaluate(eqn, inputs, padding=no_padding)[0])


def _flatten(look: Look, eqn: core.JaxprEqn) -> Flattened | None:
    (batch, *rest), sizes = eqn.invars[0].aval.shape, eqn.params["new_sizes"]
    whole = sizes == (batch, int(np.prod(rest))) and eqn.params["dimensions"] is None
    return Flattened(eqn) if whole and _is_map(look, eqn) else None


def _dense(look: Look, eqn: core.JaxprEqn) -> Whole | None:
    """What has changed of a flattened map goes through its own rows of the matrix alone."""
    (flat, matrix), out = eqn.invars, eqn.outvars[0]
    if not isinstance(look.of(flat), Flattened) or look.is_changed(matrix) or not _is_exact(out):
        return None
    if eqn.params["dimension_numbers"] != (((1,), (0,)), ((), ())) or matrix.aval.ndim != 2:
        return None
    source = look.of(flat).eqn.invars[0]
    batch, *shape = source.aval.shape
    window = look.of(source).window
    if not pays(window, source.aval.shape) or not _is_exact(source):
        return None
    starts, (rows, columns) = look.place.starts([s.begin for s in window]), window
    kernel = look.whole(matrix).reshape(*shape, -1)
    sizes = (rows.size, columns.size, *kernel.shape[2:])
    part = jax.lax.dynamic_slice(kernel, (*starts[1:3], *starts[:1] * 2), sizes)
    change = stored(look.change(source), kernel)
    inputs = [change.reshape(batch, -1), part.reshape(-1, sizes[-1])]
    return Whole(look.memory.whole(out) + jaxprs.evaluate(eqn, inputs)[0])


def _sum(look: Look, eqn: core.JaxprEqn) -> Whole | None:
    """A sum over all positions changes by that of the window."""
    source, axes = eqn.invars[0], set(eqn.params["axes"])
    if not _is_map(look, eqn) or not {1, 2} <= axes <= {1, 2, 3} or not _is_exact(source):
        return None
    change = jaxprs.evaluate(eqn, [look.change(source)])[0]
    return Whole(look.memory.whole(eqn.outvars[0]) + change)


def _is_map(look: Look, eqn: core.JaxprEqn) -> bool:
    """Whether the first operand is a map, changed in a window, and all others are constant."""
    first, *others = eqn.invars
    return isinstance(look.of(first), Local) and not any(map(look.is_changed, others))


def _is_exact(variable: core.Var) -> bool:
    """Whether what is added up again and again does not drift away soon."""
    dtype = variable.aval.dtype
    return not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits >= 32


def _reached(look: Look, source: core.Var, sweeps: Sequence[Sweep]) -> Spans:
    return tuple(map(spans.reached, look.of(source).window, sweeps))


def _least(dtype) -> float:
    return -np.inf if jnp.issubdtype(dtype, jnp.floating) else int(jnp.iinfo(dtype).min)


def _greatest(dtype) -> float:
    return np.inf if jnp.issubdtype(dtype, jnp.floating) else int(jnp.iinfo(dtype).max)


_RULES = {
    "concatenate": _concatenate,
    "pad": _pad,
    "slice": _slice,
    "conv_general_dilated": _convolution,
    "reduce_window_max": _pooling(_least),
    "reduce_window_min": _pooling(_greatest),
    "reduce_window_sum": _pooling(lambda dtype: 0.0),
    "reshape": _flatten,
    "dot_general": _dense,
    "reduce_sum": _sum,
}
