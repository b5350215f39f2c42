"""Runs a network without some of its channels: the same equations on smaller arrays."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from prunejax import jaxprs
from prunejax.shrinking.labels import Channels, Labels


def run(
    program: jaxprs.Flat,
    channels: Channels,
    kept: np.ndarray,
    inputs: Mapping[core.Var, Any],
    replaced: Mapping[core.Var, core.Var] | None = None,
    switched: Mapping[core.Var, tuple[core.Var, Any]] | None = None,
) -> list[Any]:
    """The outputs of a program whose inputs have lost channels.

    Args:
      program: the network, as it was traced with all its channels.
      channels: what belongs together in it.
      kept: `[channels]` booleans.
      inputs: the smaller inputs; those that nothing needs any more may be missing.
      replaced: variables to take another's value instead of their own: what lies between is left
        out (a residual block's output, say, and its input).
      switched: variables to take an earlier one's value instead of their own where a condition
        holds, a boolean that may be traced: nothing is left out, but one program serves many cases.

    Returns:
      The program's outputs, without the channels that are gone; None for those that need a missing
      input.
    """
    replaced = _resolved({} if replaced is None else replaced)
    values = {**program.constants, **inputs}
    known = _known(program, values, replaced)
    outputs = [atom if atom in known else None for atom in program.outputs]
    runner = _Runner(channels, kept, values, replaced, {} if switched is None else switched)
    for eqn in needed(program, outputs, replaced):
        runner.step(eqn)
    return [None if atom is None else runner.read(atom) for atom in outputs]


def _resolved(replaced: Mapping[core.Var, core.Var]) -> dict[core.Var, core.Var]:
    """What each variable is replaced by in the end: after two blocks, the first one's input."""

    def end(variable):
        while variable in replaced:
            variable = replaced[variable]
        return variable

    return {variable: end(variable) for variable in replaced}


def _known(program: jaxprs.Flat, values: Mapping, replaced: Mapping) -> set[core.Var]:
    """What can be computed from the values that are there."""
    known = set(values)
    for eqn in program.eqns:
        if all(replaced.get(v, v) in known for v in eqn.invars if jaxprs.is_variable(v)):
            known.update(eqn.outvars)
    return known


def needed(program: jaxprs.Flat, outputs: Sequence, replaced: Mapping) -> list[core.JaxprEqn]:
    """The equations that the outputs depend on."""
    wanted = {replaced.get(v, v) for v in outputs if v is not None}
    found = []
    for eqn in reversed(program.eqns):
        if wanted.intersection(eqn.outvars):
            found.append(eqn)
            wanted |= {replaced.get(v, v) for v in eqn.invars if jaxprs.is_variable(v)}
    return found[::-1]


class _Runner:
    def __init__(
        self,
        channels: Channels,
        kept: np.ndarray,
        values: dict,
        replaced: Mapping,
        switched: Mapping,
    ):
        self.channels, self.kept, self.values = channels, kept, values
        self.replaced, self.switched = replaced, switched

    def read(self, atom: Any) -> Any:
        if not jaxprs.is_variable(atom):
            return atom.val
        return self.values[self.replaced.get(atom, atom)]

    def labels(self, atom: Any) -> Labels:
        if not jaxprs.is_variable(atom):
            return (None,) * np.ndim(atom.val)
        return self.channels.labels[atom]

    def left(self, labels: np.ndarray) -> np.ndarray:
        """`[n]` booleans: which positions of an axis with these labels are left."""
        return self.kept[self.channels.channel[labels]]

    def count(self, labels: np.ndarray | None, size: int) -> int:
        return size if labels is None else int(self.left(labels).sum())

    def shape(self, variable: core.Var) -> tuple[int, ...]:
        """The variable's shape without the channels that are gone."""
        return tuple(map(self.count, self.labels(variable), variable.aval.shape))

    def step(self, eqn: core.JaxprEqn) -> None:
        name = eqn.primitive.name
        inputs = [self.read(atom) for atom in eqn.invars]
        read = list(zip(inputs, eqn.invars, strict=True))
        if jaxprs.has_rule(eqn):
            return self.save(eqn, self.called(eqn, inputs))
        if jaxprs.is_elementwise(eqn):
            inputs = self.all_fitted(eqn, inputs)
        elif name == "concatenate":
            wanted = list(self.labels(eqn.outvars[0]))
            wanted[eqn.params["dimension"]] = None
            inputs = [self.beside(x, a, wanted) for x, a in read]
        elif name == "stack":
            wanted = list(self.labels(eqn.outvars[0]))
            del wanted[eqn.params["axis"]]
            inputs = [self.beside(x, a, wanted) for x, a in read]
        elif name == "dot_general":
            wanted = self.batch_labels(eqn)
            inputs = [self.beside(x, a, own) for (x, a), own in zip(read, wanted, strict=True)]
        changed = PARAMETERS[name](self, eqn) if name in PARAMETERS else {}
        self.save(eqn, jaxprs.evaluate(eqn, inputs, **changed))

    def save(self, eqn: core.JaxprEqn, outputs: Sequence[Any]) -> None:
        self.values.update(zip(eqn.outvars, outputs, strict=True))
        for out in self.switched.keys() & set(eqn.outvars):
            other, condition = self.switched[out]
            self.values[out] = jnp.where(condition, self.read(other), self.values[out])

    def called(self, eqn: core.JaxprEqn, inputs: Sequence[Any]) -> list[Any]:
        """The outputs of a call with a rule of its own, which knows the sizes of the whole network.

        Of an elementwise one only the derivative is taken at those.
        """
        function = jaxprs.function_of_jax(eqn)
        if function is not None:
            return [function(*self.all_fitted(eqn, inputs))]
        if not jaxprs.is_elementwise(eqn):
            return self.at_full_width(eqn, inputs)
        shape = self.shape(eqn.outvars[0])

        def small(*inputs):
            return jaxprs.computed(eqn, self.all_fitted(eqn, inputs), shape)

        def whole(*inputs):
            return self.at_full_width(eqn, inputs)

        if eqn.primitive.name == "custom_jvp_call":
            small = jax.custom_jvp(small)
            small.defjvp(functools.partial(jax.jvp, whole))
        else:
            small = jax.custom_vjp(small)
            small.defvjp(functools.partial(jax.vjp, whole), lambda back, g: back(g))
        return small(*inputs)

    def at_full_width(self, eqn: core.JaxprEqn, inputs: Sequence[Any]) -> list[Any]:
        """Its outputs by way of the sizes at which it was traced, zeros where channels are gone."""
        whole = [self.spread(x, self.labels(a)) for x, a in zip(inputs, eqn.invars, strict=True)]
        outputs = jaxprs.evaluate(eqn, whole)
        return [self.fitted(x, None, out) for x, out in zip(outputs, eqn.outvars, strict=True)]

    def spread(self, x: Any, labels: Labels) -> Any:
        """An array with zeros at the positions that it has lost."""
        for axis, own in enumerate(labels):
            if own is not None and not self.left(own).all():
                wide = jnp.zeros((*x.shape[:axis], len(own), *x.shape[axis + 1 :]), x.dtype)
                places = (slice(None),) * axis + (np.flatnonzero(self.left(own)),)
                x = wide.at[places].set(x)
        return x

    def all_fitted(self, eqn: core.JaxprEqn, inputs: Sequence[Any]) -> list[Any]:
        """The inputs of an elementwise equation, each without what the others have lost."""
        out = eqn.outvars[0]
        return [self.fitted(x, a, out) for x, a in zip(inputs, eqn.invars, strict=True)]

    def fitted(self, x: Any, atom: Any, out: core.Var) -> Any:
        """An input, or what has no atom yet, without the positions that its partner has lost."""
        if not jnp.ndim(x):
            return x
        labels = (None,) * jnp.ndim(x) if atom is None else self.labels(atom)
        for axis, (own, wanted) in enumerate(zip(labels, self.labels(out), strict=True)):
            if own is not None or wanted is None or x.shape[axis] != len(wanted):
                continue  # also where a single number meets them all
            if not self.left(wanted).all():
                x = jnp.take(x, np.flatnonzero(self.left(wanted)), axis=axis)
        return x

    def beside(self, x: Any, atom: Any, wanted: Sequence[np.ndarray | None]) -> Any:
        """Likewise where arrays are put side by side, or are a batch of products."""
        for axis, (own, labels) in enumerate(zip(self.labels(atom), wanted, strict=True)):
            if own is None and labels is not None:
                x = jnp.take(x, np.flatnonzero(self.left(labels)), axis=axis)
        return x

    def batch_labels(self, eqn: core.JaxprEqn) -> list[list[np.ndarray | None]]:
        """For both operands of a product by axis the result's labels, where it is a batch axis."""
        found, out = [], self.labels(eqn.outvars[0])
        for atom, axes in zip(eqn.invars, eqn.params["dimension_numbers"][1], strict=True):
            labels: list[np.ndarray | None] = [None] * len(self.labels(atom))
            for axis, own in zip(axes, out, strict=False):  # of the result they are the first
                labels[axis] = own
            found.append(labels)
        return found


# -- parameters that hold sizes: (runner, equation) -> the parameters for the smaller arrays


def _reshape(runner, eqn):
    return {"new_sizes": runner.shape(eqn.outvars[0])}


def _broadcast(runner, eqn):
    return {"shape": runner.shape(eqn.outvars[0])}


def _convolution(runner, eqn):
    params = eqn.params
    axis = params["dimension_numbers"].lhs_spec[1]
    features = runner.labels(eqn.invars[0])[axis]
    whole = eqn.invars[0].aval.shape[axis]
    if params["feature_group_count"] != whole:
        return {}
    return {"feature_group_count": runner.count(features, whole)}  # depthwise


def _slice(runner, eqn):
    starts, limits = list(eqn.params["start_indices"]), list(eqn.params["limit_indices"])
    for axis, labels in enumerate(runner.labels(eqn.invars[0])):
        if labels is not None and runner.labels(eqn.outvars[0])[axis] is not None:
            before = np.concatenate([[0], np.cumsum(runner.left(labels))])
            starts[axis], limits[axis] = int(before[starts[axis]]), int(before[limits[axis]])
    return {"start_indices": tuple(starts), "limit_indices": tuple(limits)}


def _gather(runner, eqn):
    operand, sizes = eqn.invars[0], list(eqn.params["slice_sizes"])
    for axis, (labels, whole) in enumerate(
        zip(runner.labels(operand), operand.aval.shape, strict=True)
    ):
        if sizes[axis] == whole:  # else none of its positions is gone
            sizes[axis] = runner.count(labels, whole)
    return {"slice_sizes": tuple(sizes)}


def _split(runner, eqn):
    axis = eqn.params["axis"]
    return {"sizes": tuple(runner.shape(out)[axis] for out in eqn.outvars)}


def _pad(runner, eqn):
    config = list(eqn.params["padding_config"])
    for axis, labels in enumerate(runner.labels(eqn.outvars[0])):
        low, high, interior = config[axis]
        if labels is not None and (low or high):
            left = runner.left(labels)
            config[axis] = (int(left[:low].sum()), int(left[len(left) - high :].sum()), interior)
    return {"padding_config": tuple(config)}


PARAMETERS = {
    "reshape": _reshape,
    "broadcast_in_dim": _broadcast,
    "conv_general_dilated": _convolution,
    "slice": _slice,
    "gather": _gather,
    "split": _split,
    "pad": _pad,
}
