"""A traced function as a flat list of equations, to be looked at and evaluated in other ways."""

import pathlib
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core

# What these run is run many times, on data or on numbers of an array: it stays one equation.
_CONTROL_FLOW = ("scan", "while", "cond", "reduce", "reduce_window")

# Each number of the result is made of those at the same place, or of a scalar.
ELEMENTWISE = frozenset(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type
    copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow
    is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not or pow real
    reduce_precision rem round rsqrt select_n sign sin sinh sqrt square stop_gradient sub tan tanh
    xor
    """.split()  # noqa: SIM905
)


class Flat(NamedTuple):
    """A function without nested calls.

    Attributes:
      eqns: its equations in order; every variable is assigned once.
      constants: values of the variables that are captured from outside.
      inputs: variables of the arguments' leaves.
      outputs: variables, or literals, of the results' leaves.
      structure: of the results.
    """

    eqns: list[core.JaxprEqn]
    constants: dict[core.Var, Any]
    inputs: list[core.Var]
    outputs: list[Any]
    structure: Any


def flat(function: Callable[..., Any], *args: Any, keep_rules: bool = False) -> Flat:
    """Traces `function` at these arguments (or their shapes) and inlines the calls in it.

    Args:
      function: of the arguments.
      *args: to trace at.
      keep_rules: calls with a rule of differentiation of their own stay one equation, `has_rule`;
        else these rules are lost.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    jaxpr = closed.jaxpr
    constants = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    eqns: list[core.JaxprEqn] = []
    names: dict[core.Var, Any] = {}  # a variable inside a call -> what it is outside
    _inline(jaxpr, names, constants, eqns, keep_rules)
    outputs = [_resolved(atom, names) for atom in jaxpr.outvars]
    return Flat(eqns, constants, list(jaxpr.invars), outputs, jax.tree.structure(shapes))


def evaluate(eqn: core.JaxprEqn, inputs: Sequence[Any], **changed: Any) -> list[Any]:
    """The outputs of an equation for other inputs, some of its parameters changed.

    As a program of its own, for how a primitive is bound differs between versions of JAX.
    """
    variables = {v: x for v, x in zip(eqn.invars, inputs, strict=True) if is_variable(v)}
    eqn = eqn.replace(params={**eqn.params, **changed})
    program = core.Jaxpr((), list(variables), eqn.outvars, [eqn], eqn.effects)
    return core.jaxpr_as_fun(core.ClosedJaxpr(program, ()))(*variables.values())


def has_rule(eqn: core.JaxprEqn) -> bool:
    """Whether an equation is a call whose derivative may be another than that of what it computes.

    All of `jax.custom_vjp`, and those of `jax.custom_jvp` that are elementwise: of the others, such
    as the softmax, it is the same.
    """
    if eqn.primitive.name == "custom_jvp_call":
        return is_elementwise(eqn)
    return eqn.primitive.name == "custom_vjp_call"


def is_elementwise(eqn: core.JaxprEqn) -> bool:
    """Whether each number of the result is made of those at the same place, or of a scalar."""
    if eqn.primitive.name in ("custom_jvp_call", "custom_vjp_call"):
        shape = eqn.outvars[0].aval.shape
        alike = all(out.aval.shape == shape for out in eqn.outvars)
        alike = alike and all(atom.aval.shape in ((), shape) for atom in eqn.invars)
        return alike and all(map(is_elementwise, _body(eqn)))
    return eqn.primitive.name in ELEMENTWISE


def is_relu(eqn: core.JaxprEqn) -> bool:
    """Whether an equation is a call of `jax.nn.relu`, and not of another max(x, 0) with a rule."""
    if eqn.primitive.name != "custom_jvp_call":
        return False
    info = _called(eqn).jaxpr.debug_info
    source = "" if info is None else info.func_src_info
    return source.startswith("relu ") and "jax/_src/nn" in pathlib.PurePath(source).as_posix()


def is_variable(atom: Any) -> bool:
    """Whether it has to be looked up; a literal carries its value."""
    return not isinstance(atom, core.Literal)


def _inline(
    jaxpr: core.Jaxpr, names: dict, constants: dict, eqns: list, keep_rules: bool = False
) -> None:
    for eqn in jaxpr.eqns:
        inner = None if keep_rules and has_rule(eqn) else _called(eqn)
        if inner is None:
            invars = [_resolved(atom, names) for atom in eqn.invars]
            eqns.append(eqn.replace(invars=invars))
            continue
        # A function that is called twice has the same variables both times.
        inner = _renamed(inner)
        constants.update(zip(inner.jaxpr.constvars, inner.consts, strict=True))
        arguments = [_resolved(atom, names) for atom in eqn.invars]
        names.update(zip(inner.jaxpr.invars, arguments, strict=True))
        _inline(inner.jaxpr, names, constants, eqns, keep_rules)
        results = [_resolved(atom, names) for atom in inner.jaxpr.outvars]
        names.update(zip(eqn.outvars, results, strict=True))


def _resolved(atom: Any, names: dict) -> Any:
    return names.get(atom, atom) if is_variable(atom) else atom


def _called(eqn: core.JaxprEqn) -> core.ClosedJaxpr | None:
    """The program of an equation that does nothing but call it."""
    if eqn.primitive.name in _CONTROL_FLOW:
        return None
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        program = eqn.params.get(name)
        # In newer versions of JAX the two are one class.
        if isinstance(program, core.Jaxpr) and not isinstance(program, core.ClosedJaxpr):
            program = core.ClosedJaxpr(program, ())
        if isinstance(program, core.ClosedJaxpr):
            return program if len(program.jaxpr.invars) == len(eqn.invars) else None
    return None


def _body(eqn: core.JaxprEqn) -> list[core.JaxprEqn]:
    """The equations of what a call computes."""
    eqns: list[core.JaxprEqn] = []
    _inline(_called(eqn).jaxpr, {}, {}, eqns)
    return eqns


def _renamed(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """The same program with variables of its own."""
    inputs = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars]
    return jax.make_jaxpr(core.jaxpr_as_fun(closed))(*inputs)


def origins(program: Flat, names: dict[core.Var, str]) -> dict[core.Var, str]:
    """The names of inputs, and of what is only another arrangement of one: a transpose, a cast."""
    known = dict(names)
    for eqn in program.eqns:
        if eqn.primitive.name not in _ARRANGEMENTS:
            continue
        (source, *_), (out, *_) = eqn.invars, eqn.outvars
        if is_variable(source) and source in known:
            known[out] = known[source]
    return known


def made_of(
    program: Flat,
    sources: Mapping[core.Var, frozenset[str]],
    through: Container[str] | None = None,
) -> dict[core.Var, frozenset[str]]:
    """The names of all that a variable is computed from, for those computed from anything named.

    Args:
      program: its equations are followed in their order.
      sources: names of the inputs.
      through: primitives that hand names on; None: all do.
    """
    known = dict(sources)
    for eqn in program.eqns:
        if through is not None and eqn.primitive.name not in through:
            continue
        read = frozenset().union(*(known.get(a, ()) for a in eqn.invars if is_variable(a)))
        if read:
            known.update(dict.fromkeys(eqn.outvars, read))
    return known


_ARRANGEMENTS = frozenset(
    ("transpose", "reshape", "convert_element_type", "copy", "rev", "squeeze", "stop_gradient")
)
