"""The work of a network's layers, counted from its equations."""

import collections
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from prunejax import jaxprs, trees
from prunejax.classifier import Classifier
from prunejax.shrinking import structure


class LayerCost(NamedTuple):
    """What one weight costs.

    Attributes:
      path: of the weight, such as "Conv_0/kernel".
      weights, nonzero: how many numbers it holds, and how many of them are not zero.
      flops: additions and multiplications for one image, all positions of padding counted.
      effective_flops: the same without those of weights that are zero.
    """

    path: str
    weights: int
    nonzero: int
    flops: int
    effective_flops: int

    @property
    def density(self) -> float:
        """Share of the weights that are not zero."""
        return self.nonzero / self.weights


def count(classifier: Classifier, image_shape: tuple[int, ...]) -> tuple[LayerCost, ...]:
    """Weights and work of each layer, read from the network's equations; nothing is run.

    Work are the products with a weight, or with what is made of weights alone, such as a kernel
    that is normalised first; of several weights, each has a part as large as its size. A weight
    that is used twice costs twice, one inside of `scan` as often as that runs. Products of two
    activations are not counted.

    Raises:
      ValueError: variables without "params"; a product with a weight inside of `while` or `cond`,
        of which nobody knows how often it runs; images that the network does not take.
    """
    structure.require_params(classifier.variables)
    shapes = jax.eval_shape(lambda: classifier.variables)
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    try:
        program = jaxprs.flat(classifier.apply_fn, shapes, image)
    except Exception as error:  # whatever the network raises on such images
        raise ValueError(
            f"image_shape is {image_shape}, and the network does not take such images: {error}"
        ) from error
    *inputs, images = program.inputs
    leaves = trees.flatten(classifier.params)
    weights = {f"params/{path}": leaves[path] for path in trees.weights(classifier.params)}
    paths = zip(inputs, trees.flatten(shapes), strict=True)
    sources = {variable: frozenset([path]) for variable, path in paths if path in weights}
    sources[images] = frozenset([_IMAGES])
    flops, saved = collections.Counter(), collections.Counter()
    for made_of, zero_where, number in _products(program, sources, sources):
        sizes = {path: np.size(weights[path]) for path in made_of}
        for path, size in sizes.items():
            part = 2 * number * size // sum(sizes.values())
            flops[path] += part
            if path in zero_where:
                saved[path] += part * (size - int(np.count_nonzero(weights[path]))) // size
    layers = []
    for path, leaf in weights.items():
        name, numbers = path.removeprefix("params/"), (np.size(leaf), int(np.count_nonzero(leaf)))
        layers.append(LayerCost(name, *numbers, flops[path], flops[path] - saved[path]))
    return tuple(layers)


_IMAGES = ""  # the name of what depends on the images; no path is empty

# What they make of a weight's zeros is zero.
_KEEP_ZEROS = frozenset(
    """
    broadcast_in_dim concatenate convert_element_type copy div gather mul neg reshape rev slice
    split squeeze stop_gradient transpose
    """.split()  # noqa: SIM905
)

Sources = Mapping[core.Var, frozenset[str]]


def _products(
    program: jaxprs.Flat, sources: Sources, zeros: Sources
) -> Iterator[tuple[frozenset[str], frozenset[str], int]]:
    """(weights, those whose zeros are still there, multiplications) of every product with some.

    Args:
      program: the network, or a part of it that is repeated.
      sources: the weights that its inputs are made of, and `_IMAGES`.
      zeros: likewise, those alone whose zeros are zeros of the input.
    """
    made_of = jaxprs.made_of(program, sources)
    zero_where = jaxprs.made_of(program, zeros, _KEEP_ZEROS)

    def named(known, atoms):
        return [known.get(a, frozenset()) if jaxprs.is_variable(a) else frozenset() for a in atoms]

    for eqn in program.eqns:
        read, kept = named(made_of, eqn.invars), named(zero_where, eqn.invars)
        if eqn.primitive.name in _MULTIPLICATIONS:
            for own, still in zip(read[::-1], kept[::-1], strict=True):
                if own and _IMAGES not in own:
                    yield own, still, _MULTIPLICATIONS[eqn.primitive.name](eqn)
                    break
        elif eqn.primitive.name == "scan":
            body, carried = _scanned(eqn, read)
            inner = [dict(zip(body.inputs, known, strict=True)) for known in (carried, kept)]
            for own, still, number in _products(body, *inner):
                yield own, still, eqn.params["length"] * number
        elif eqn.primitive.name in ("while", "cond"):
            for body in _bodies(eqn):  # their inputs are the last ones
                inner = dict(zip(body.inputs[::-1], read[::-1], strict=False))
                for own, _, _ in _products(body, inner, {}):
                    raise ValueError(
                        f"apply_fn multiplies with {sorted(own)} inside of "
                        f"{eqn.primitive.name!r}, of which nobody knows how often it runs; "
                        "its work cannot be counted."
                    )


def _scanned(eqn: core.JaxprEqn, read: Sequence[frozenset[str]]):
    """The program that is repeated, and what its inputs are made of in any of the rounds."""
    body = _flat(eqn.params["jaxpr"])
    # What is sliced or stacked has an axis more outside. (The parameters that say how many are
    # constant and carried have other names in newer versions of JAX.)
    number = _of_equal_rank(eqn.outvars, body.outputs)
    first = _of_equal_rank(eqn.invars, body.inputs) - number
    read, before = list(read), None
    while read != before:
        before = list(read)
        made_of = jaxprs.made_of(body, dict(zip(body.inputs, read, strict=True)))
        for i, atom in enumerate(body.outputs[:number], start=first):
            read[i] |= made_of.get(atom, frozenset()) if jaxprs.is_variable(atom) else frozenset()
    return body, read


def _of_equal_rank(outside, inside) -> int:
    return sum(a.aval.ndim == b.aval.ndim for a, b in zip(outside, inside, strict=True))


def _bodies(eqn: core.JaxprEqn) -> list[jaxprs.Flat]:
    if eqn.primitive.name == "cond":
        return [_flat(branch) for branch in eqn.params["branches"]]
    return [_flat(eqn.params["body_jaxpr"])]


def _flat(closed: core.ClosedJaxpr) -> jaxprs.Flat:
    inputs = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars]
    return jaxprs.flat(core.jaxpr_as_fun(closed), *inputs)


def _of_convolution(eqn: core.JaxprEqn) -> int:
    """All positions of padding counted, and not the zeros between those of a transposed one."""
    params, out = eqn.params, eqn.outvars[0].aval.shape
    numbers, kernel = params["dimension_numbers"], eqn.invars[1].aval.shape
    batch, _, *space = numbers.out_spec
    outputs, inputs, *sides = numbers.rhs_spec
    total = out[batch] * kernel[outputs] * kernel[inputs]
    options = (params[name] for name in ("window_strides", "padding", "lhs_dilation",
                                         "rhs_dilation"))  # fmt: skip
    for axis, side, stride, (low, _), between, spread in zip(space, sides, *options, strict=True):
        places = stride * np.arange(out[axis])[:, None] + spread * np.arange(kernel[side]) - low
        total *= int(np.sum(places % between == 0))
    return total


def _of_matrices(eqn: core.JaxprEqn) -> int:
    (sums, _), _ = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    return math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[axis] for axis in sums)


_MULTIPLICATIONS = {"conv_general_dilated": _of_convolution, "dot_general": _of_matrices}
