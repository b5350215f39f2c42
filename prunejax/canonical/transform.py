"""Convolutions that stay fast inside compiled loops, for any network.

JAX writes the gradient of a convolution as another convolution with permuted axes and a reversed
kernel. XLA's CPU compiler brings that to the layout its fast code wants, but not inside a `while`
body, where it then runs 3 to 40 times slower. `canonical` rewrites a function so that each of its
convolutions has the layout NHWC x HWIO -> NHWC from the start; the mathematics is unchanged.

What else is slow on a CPU is rewritten too, each in a file of its own: gradients of strided
convolutions (`strided`), convolutions of groups (`grouped`), those of few channels (`narrow`), and
those of images smaller than their kernel (`plain`).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend import core

from prunejax import jaxprs
from prunejax.canonical.convolution import convolve


def canonical(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with all its convolutions, also those of gradients, in canonical layout.

    Apply it around a gradient, inside the loop: `lax.scan(canonical(training_step), ...)`.
    It must be the outermost of the transformations of autodiff: differentiate first.

    Args:
      function: takes and returns pytrees of arrays, positional arguments only.
    """

    @functools.wraps(function)
    def wrapped(*args):
        jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        leaves = _evaluate(jaxpr.jaxpr, jaxpr.consts, *jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    return wrapped


def _evaluate(jaxpr: core.Jaxpr, consts: Sequence[Any], *args: Any) -> list[Any]:
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(atom):
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        if _is_convolution(eqn):
            outputs = [_convolution(*inputs, **eqn.params)]
        else:
            inner = {n: _rewrite(p) for n, p in eqn.params.items() if _holds_convolution(p)}
            outputs = jaxprs.evaluate(eqn, inputs, **inner)
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _is_convolution(eqn: core.JaxprEqn) -> bool:
    return eqn.primitive is lax.conv_general_dilated_p


def _holds_convolution(param: Any) -> bool:
    if isinstance(param, tuple | list):
        return any(map(_holds_convolution, param))
    if isinstance(param, core.ClosedJaxpr):
        param = param.jaxpr
    return isinstance(param, core.Jaxpr) and any(
        _is_convolution(eqn) or any(map(_holds_convolution, eqn.params.values()))
        for eqn in param.eqns
    )


def _rewrite(param: Any) -> Any:
    """The programs inside loops, branches and calls, rewritten likewise."""
    if isinstance(param, tuple | list):
        return type(param)(_rewrite(p) if _holds_convolution(p) else p for p in param)
    closed = isinstance(param, core.ClosedJaxpr)
    jaxpr, consts = (param.jaxpr, param.consts) if closed else (param, ())
    inputs = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in jaxpr.invars]
    rewritten = jax.make_jaxpr(functools.partial(_evaluate, jaxpr, consts))(*inputs)
    return rewritten if closed else rewritten.jaxpr


def _convolution(lhs, rhs, *, dimension_numbers, **params):
    lhs_spec, rhs_spec, out_spec = dimension_numbers
    out = convolve(
        _transposed(lhs, (lhs_spec[0], *lhs_spec[2:], lhs_spec[1])),
        _transposed(rhs, (*rhs_spec[2:], rhs_spec[1], rhs_spec[0])),
        **params,
    )
    # Axis i of `out` belongs at position `order[i]` of what the caller asked for.
    order = (out_spec[0], *out_spec[2:], out_spec[1])
    return lax.transpose(out, tuple(order.index(axis) for axis in range(out.ndim)))


def _transposed(operand, order):
    # Without the barrier XLA's CPU compiler would compute the operand, often a whole residual
    # block, once more in the order of the transposed entries, which is slow (from jaxlib 0.12 on).
    if jax.default_backend() == "cpu" and order != tuple(range(operand.ndim)):
        operand = lax.optimization_barrier(operand)
    return lax.transpose(operand, order)
