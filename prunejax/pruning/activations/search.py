"""Finds the layers of a network in its equations: their kernels, their maps, what is a unit's."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from prunejax import jaxprs


class Layer(NamedTuple):
    """A convolution or a dense layer, whose kernel is a parameter.

    Attributes:
      shape: of the kernel.
      axis: of the kernel, along which its units lie.
      inputs: the variable that it reads.
      output: the variable that it gives, before bias, normalisation and all else.
      map: the variable with the maps of its units.
      map_axes: the axes of samples and of units in output and map.
      own: what makes a unit, as (path among the variables, axis): the kernel, and the bias and
        normalisation that come before anything else is added.
    """

    shape: tuple[int, ...]
    axis: int
    inputs: core.Var
    output: core.Var
    map: core.Var
    map_axes: tuple[int, int]
    own: tuple[tuple[str, int], ...]

    @property
    def units(self) -> int:
        return self.shape[self.axis]


def find(program: jaxprs.Flat, paths: list[str]) -> tuple[dict[str, Layer], frozenset[str]]:
    """The layers by the path of their kernel among the parameters, and those that none reads.

    Args:
      program: `apply_fn(variables, images)`.
      paths: of the variables, such as "params/Conv_0/kernel", in the order of the inputs.

    Raises:
      ValueError: no layer, or a kernel that is applied twice.
    """
    return _Search(program, paths).result()


def scales(program: jaxprs.Flat, paths: list[str]) -> dict[str, str]:
    """By path of a kernel that of the scale of the normalisation that follows it.

    It is the first parameter by which the units of the layer are multiplied, each by one number:
    before another layer reads them, past activations, max pooling and sums of branches. A branch
    that is added up before it is normalised so has the first normalisation that reads the sum.
    Layers without one are left out.

    Args:
      program: `apply_fn(variables, images)`.
      paths: of the variables, such as "params/Conv_0/kernel", in the order of the inputs.
    """
    return _Search(program, paths).scales()


class _Search:
    """Goes through the equations once forwards, and from each layer on to its map."""

    def __init__(self, program: jaxprs.Flat, paths: list[str]):
        self.program = program
        self.paths = dict(zip(program.inputs, paths, strict=False))  # the images come after them
        self.inputs = {path: variable for variable, path in self.paths.items()}
        self.producers = {out: eqn for eqn in program.eqns for out in eqn.outvars}
        # Which variables of the network a variable is made of, or None: of the images too.
        self.made_of: dict[core.Var, frozenset[str] | None] = dict.fromkeys(program.inputs)
        self.made_of |= {variable: frozenset([path]) for variable, path in self.paths.items()}
        self.made_of |= dict.fromkeys(program.constants, frozenset())
        for eqn in program.eqns:
            sources = [self.made_of[v] for v in _operands(eqn)]
            whole = None if None in sources else frozenset().union(*sources)
            self.made_of.update(dict.fromkeys(eqn.outvars, whole))

    def result(self) -> tuple[dict[str, Layer], frozenset[str]]:
        layers: dict[str, Layer] = {}
        behind: dict[core.Var, frozenset[str]] = {}  # the layers that a variable depends on
        read: set[str] = set()
        for number, eqn in enumerate(self.program.eqns):
            before = frozenset().union(*(behind.get(v, frozenset()) for v in _operands(eqn)))
            axes = _axes(eqn)
            path = None if axes is None else self.kernel(eqn)
            if path is not None:
                if path in layers:
                    raise ValueError(
                        f"The kernel {path!r} is applied twice; its units have no single map. "
                        "Use a criterion that looks at weights alone."
                    )
                layers[path] = self.layer(number, path, *axes)
                read |= before
                before |= {path}
            behind.update(dict.fromkeys(eqn.outvars, before))
        if not layers:
            raise ValueError(
                "apply_fn holds no convolution or dense layer whose kernel is in "
                "variables['params']; criteria that look at data need one."
            )
        return layers, frozenset(layers.keys() - read)

    def scales(self) -> dict[str, str]:
        found: dict[str, str | None] = {}
        for number, eqn in enumerate(self.program.eqns):
            axes = _axes(eqn)
            path = None if axes is None else self.kernel(eqn)
            if path is not None:
                scale = self.scale(number, eqn.invars[1].aval.shape[axes[0]])
                # A kernel that is applied twice may be followed by two of them.
                found[path] = scale if found.get(path, scale) == scale else None
        return {path: scale for path, scale in found.items() if scale is not None}

    def scale(self, number: int, units: int) -> str | None:
        """The parameter that the outputs of an equation are first multiplied by."""
        reached = set(self.program.eqns[number].outvars)
        for eqn in self.program.eqns[number + 1 :]:
            name, operands = eqn.primitive.name, _operands(eqn)
            passes = name in jaxprs.ELEMENTWISE or name == "reduce_window_max"
            if reached.isdisjoint(operands) or not passes:
                continue
            reached.update(eqn.outvars)
            if name == "mul":
                factors = (self.made_of[v] or () for v in operands if v not in reached)
                candidates = {
                    path.removeprefix("params/")
                    for path in frozenset().union(*factors)
                    if path.startswith("params/") and self.is_vector(path, units)
                }
                if len(candidates) == 1:
                    return candidates.pop()
        return None

    def is_vector(self, path: str, size: int) -> bool:
        """Whether a variable of the network is `size` numbers along one axis."""
        sizes = self.inputs[path].aval.shape
        return bool(sizes) and max(sizes) == math.prod(sizes) == size

    def kernel(self, eqn: core.JaxprEqn) -> str | None:
        """The path of the parameter that the images are convolved or multiplied with."""
        images, kernel = eqn.invars
        if not (jaxprs.is_variable(images) and jaxprs.is_variable(kernel)):
            return None
        if self.made_of[images] is not None:
            return None
        while kernel not in self.paths:
            producer = self.producers.get(kernel)
            if producer is None or producer.primitive.name not in jaxprs.ELEMENTWISE:
                return None
            operands = _operands(producer)
            if len(operands) != 1 or operands[0].aval.shape != kernel.aval.shape:
                return None
            (kernel,) = operands
        collection, _, path = self.paths[kernel].partition("/")
        return path if collection == "params" else None

    def layer(self, number: int, path: str, axis: int, map_axes: tuple[int, int]) -> Layer:
        eqn = self.program.eqns[number]
        shape = eqn.invars[1].aval.shape
        last, others = self.follow(number)
        own = [(f"params/{path}", axis)]
        for name in sorted(others):
            if self.is_vector(name, shape[axis]):
                own.append((name, self.inputs[name].aval.shape.index(shape[axis])))
        return Layer(shape, axis, eqn.invars[0], eqn.outvars[0], last, map_axes, tuple(own))

    def follow(self, number: int) -> tuple[core.Var, set[str]]:
        """From a layer to its map, and the network's variables that are met before a sum."""
        last = self.program.eqns[number].outvars[0]
        reached, met = {last}, set()
        alone, rectified = True, False
        for eqn in self.program.eqns[number + 1 :]:
            operands = _operands(eqn)
            if reached.isdisjoint(operands):
                continue
            name, out = eqn.primitive.name, eqn.outvars[0]
            if rectified:
                return (out if name == "min" and len(operands) == 1 else last), met  # ReLU6
            if name not in jaxprs.ELEMENTWISE:
                return last, met
            others = [self.made_of[v] for v in operands if v not in reached]
            alone = alone and None not in others
            if alone:
                met.update(*others)
            rectified = name == "max" and any(map(self.is_zero, eqn.invars))
            reached = {out} if rectified else reached | {out}
            if jnp.issubdtype(out.aval.dtype, jnp.floating):
                last = out
        return last, met

    def is_zero(self, atom: Any) -> bool:
        if not jaxprs.is_variable(atom):
            return not np.any(atom.val)
        producer = self.producers.get(atom)
        return (
            producer is not None
            and producer.primitive.name in ("broadcast_in_dim", "convert_element_type")
            and self.is_zero(producer.invars[0])
        )


def _operands(eqn: core.JaxprEqn) -> list[core.Var]:
    return [atom for atom in eqn.invars if jaxprs.is_variable(atom)]


def _axes(eqn: core.JaxprEqn) -> tuple[int, tuple[int, int]] | None:
    """The kernel's axis of units, and the output's axes of samples and of units."""
    if eqn.primitive.name == "conv_general_dilated" and eqn.params["batch_group_count"] == 1:
        _, kernel, out = eqn.params["dimension_numbers"]
        return kernel[0], (out[0], out[1])
    if eqn.primitive.name == "dot_general":
        (_, sums), (_, batch) = eqn.params["dimension_numbers"]
        free = set(range(eqn.invars[1].aval.ndim)) - {*sums, *batch}
        if len(free) == 1 and not batch:
            return free.pop(), (0, eqn.outvars[0].aval.ndim - 1)
    return None
