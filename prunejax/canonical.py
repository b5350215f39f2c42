"""Convolutions that stay fast inside compiled loops, for any network.

JAX writes the gradient of a convolution as another convolution with permuted axes and a reversed
kernel. XLA's CPU compiler brings that to the layout its fast code wants, but not inside a `while`
body, where it then runs 3 to 40 times slower. `canonical` rewrites a function so that each of its
convolutions has the layout NHWC x HWIO -> NHWC from the start; the mathematics is unchanged.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend import core


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
        if _is_convolution(eqn):
            outputs = [_convolution(*map(read, eqn.invars), **eqn.params)]
        else:
            outputs = _evaluate_other(eqn, values)
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _evaluate_other(eqn: core.JaxprEqn, values: dict[core.Var, Any]) -> list[Any]:
    """One equation as a program of its own: how a primitive is bound differs between versions."""
    params = {
        name: _rewrite(param) if _holds_convolution(param) else param
        for name, param in eqn.params.items()
    }
    inputs = list(dict.fromkeys(v for v in eqn.invars if not isinstance(v, core.Literal)))
    program = core.Jaxpr((), inputs, eqn.outvars, [eqn.replace(params=params)], eqn.effects)
    return core.jaxpr_as_fun(core.ClosedJaxpr(program, ()))(*(values[v] for v in inputs))


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
    batch, *space, features = range(lhs.ndim)
    canonical_numbers = lax.ConvDimensionNumbers(
        lhs_spec=(batch, features, *space),
        rhs_spec=(lhs.ndim - 1, lhs.ndim - 2, *range(lhs.ndim - 2)),
        out_spec=(batch, features, *space),
    )
    out = lax.conv_general_dilated_p.bind(
        lax.transpose(lhs, (lhs_spec[0], *lhs_spec[2:], lhs_spec[1])),
        lax.transpose(rhs, (*rhs_spec[2:], rhs_spec[1], rhs_spec[0])),
        dimension_numbers=canonical_numbers,
        **params,
    )
    # Axis i of `out` belongs at position `order[i]` of what the caller asked for.
    order = (out_spec[0], *out_spec[2:], out_spec[1])
    return lax.transpose(out, tuple(order.index(axis) for axis in range(out.ndim)))
