"""A traced function as a flat list of equations, to be looked at and evaluated in other ways."""

import pathlib
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.api_util import debug_info
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
    return _flattened(closed, keep_rules)._replace(structure=jax.tree.structure(shapes))


def evaluate(eqn: core.JaxprEqn, inputs: Sequence[Any], **changed: Any) -> list[Any]:
    """The outputs of an equation for other inputs, some of its parameters changed.

    As a program of its own, for how a primitive is bound differs between versions of JAX.
    """
    values = {v: x for v, x in zip(eqn.invars, inputs, strict=True) if is_variable(v)}
    return evaluate_all([eqn.replace(params={**eqn.params, **changed})], values, eqn.outvars)


def evaluate_all(
    eqns: Sequence[core.JaxprEqn], values: Mapping[core.Var, Any], wanted: Sequence[core.Var]
) -> list[Any]:
    """What some variables hold after these equations.

    Args:
      eqns: in order.
      values: of the variables that the equations read and do not make, constants too.
      wanted: the variables.
    """
    effects = frozenset().union(*(eqn.effects for eqn in eqns))
    told = debug_info("evaluate_all", lambda: None, (), {})._replace(result_paths=None)
    program = core.Jaxpr((), list(values), list(wanted), list(eqns), effects, told)
    return core.jaxpr_as_fun(core.ClosedJaxpr(program, ()))(*values.values())


def has_rule(eqn: core.JaxprEqn) -> bool:
    """Whether an equation is a call whose derivative may be another than that of what it computes.

    All of `jax.custom_vjp` and `jax.custom_jvp` but JAX's own softmax, of which it is the same.
    """
    if eqn.primitive.name == "custom_jvp_call":
        return _name_in_jax(eqn) != "_softmax"
    return eqn.primitive.name == "custom_vjp_call"


def is_elementwise(eqn: core.JaxprEqn) -> bool:
    """Whether each number of the result is made of those at the same place, or of a scalar."""
    if eqn.primitive.name not in ("custom_jvp_call", "custom_vjp_call"):
        return eqn.primitive.name in ELEMENTWISE
    shape, body = eqn.outvars[0].aval.shape, _body(eqn)

    def is_filled(inner):  # with one number
        is_number = inner.primitive.name == "broadcast_in_dim" and not inner.invars[0].aval.shape
        return is_number and inner.outvars[0].aval.shape == shape

    alike = all(out.aval.shape == shape for out in eqn.outvars)
    alike = alike and all(atom.aval.shape in ((), shape) for atom in eqn.invars)
    alike = alike and not any(map(np.ndim, body.constants.values()))
    return alike and all(is_elementwise(inner) or is_filled(inner) for inner in body.eqns)


def computed(eqn: core.JaxprEqn, inputs: Sequence[Any], shape: Sequence[int]) -> list[Any]:
    """What an elementwise call computes of inputs of another size; its rule is lost.

    Args:
      eqn: the call.
      inputs: of that size, or scalars.
      shape: of the outputs.
    """
    body = _body(eqn)
    values = dict(body.constants)
    for variable, x in zip(body.inputs, inputs, strict=True):
        values[variable] = jnp.asarray(x, variable.aval.dtype)  # a literal may be a Python float

    def read(atom):
        return values[atom] if is_variable(atom) else atom.val

    for inner in body.eqns:
        changed = {"shape": tuple(shape)} if inner.primitive.name == "broadcast_in_dim" else {}
        outputs = evaluate(inner, [read(atom) for atom in inner.invars], **changed)
        values.update(zip(inner.outvars, outputs, strict=True))
    return [read(atom) for atom in body.outputs]


def function_of_jax(eqn: core.JaxprEqn) -> Callable[..., jax.Array] | None:
    """The function of JAX that a call with a rule is one of, if it can be called at other sizes.

    Told by its name and module: other people's max(x, 0) has another rule than `jax.nn.relu`.
    """
    return _OF_ANY_SIZE.get(_name_in_jax(eqn)) if eqn.primitive.name == "custom_jvp_call" else None


_OF_ANY_SIZE = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "logaddexp": jnp.logaddexp,  # softplus is made of it
    "logaddexp2": jnp.logaddexp2,
}


def _name_in_jax(eqn: core.JaxprEqn) -> str:
    """Of the function that an equation calls, if it is one of JAX itself; else ""."""
    info = _called(eqn).jaxpr.debug_info
    name, _, place = ("" if info is None else info.func_src_info or "").partition(" ")
    return name if "jax/_src/" in pathlib.PurePath(place).as_posix() else ""


def is_variable(atom: Any) -> bool:
    """Whether it has to be looked up; a literal carries its value."""
    return not isinstance(atom, core.Literal)


def _flattened(closed: core.ClosedJaxpr, keep_rules: bool = False) -> Flat:
    jaxpr = closed.jaxpr
    constants = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    eqns: list[core.JaxprEqn] = []
    names: dict[core.Var, Any] = {}  # a variable inside a call -> what it is outside
    _inline(jaxpr, names, constants, eqns, keep_rules)
    outputs = [_resolved(atom, names) for atom in jaxpr.outvars]
    structure = jax.tree.structure([0] * len(outputs))
    return Flat(eqns, constants, list(jaxpr.invars), outputs, structure)


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


def _body(eqn: core.JaxprEqn) -> Flat:
    """What a call computes; its rule is lost."""
    return _flattened(_called(eqn))


def _renamed(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """The same program with variables of its own."""
    inputs = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars]
    return jax.make_jaxpr(core.jaxpr_as_fun(closed))(*inputs)


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
