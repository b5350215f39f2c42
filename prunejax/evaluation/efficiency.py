"""What a network costs: weights, work, bytes, time, memory.

A mask alone makes nothing faster: a masked weight is multiplied like any other. `effective_flops`
is the work that hardware which skips zeros would have; `latency` is what this machine takes.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from prunejax import jaxprs, masks, trees
from prunejax.classifier import Classifier
from prunejax.shrinking import packing


class Layer(NamedTuple):
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


class Efficiency(NamedTuple):
    """What a network costs.

    Attributes:
      layers: of its weights (leaves of rank two or more), in the order of their paths.
      parameters, nonzero: numbers in all parameters, and how many of them are not zero.
      nominal_density: share of the weights that the mask may have removed and did not; 1 without
        a mask.
      density: share of all weights that are not zero.
      flops, effective_flops: of one image, additions and multiplications.
      bytes_on_disk: parameters packed with their mask (`shrinking.packing`).
      latency: seconds for a batch, the fastest of several.
      throughput: images a second at that.
      batch_size: of that batch.
      peak_memory: bytes that the compiled program needs for it: arguments, results, temporaries.
    """

    layers: tuple[Layer, ...]
    parameters: int
    nonzero: int
    nominal_density: float
    density: float
    flops: int
    effective_flops: int
    bytes_on_disk: int
    latency: float
    throughput: float
    batch_size: int
    peak_memory: int


def efficiency(
    classifier: Classifier,
    image_shape: tuple[int, ...],
    mask: Any = None,
    *,
    batch_size: int = 128,
    repeats: int = 10,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Efficiency:
    """Counts and measures a network.

    Args:
      classifier: the network.
      image_shape: of one image.
      mask: what is left of its parameters; applied before anything is counted. None: all.
      batch_size: images at a time for latency and memory.
      repeats: how often the batch is timed; the fastest counts.
      progress: called with (batches timed, batches in all), first before compilation.

    Raises:
      ValueError: a mask of another structure, a batch size or a number of repeats below 1.
    """
    for name, value in (("batch_size", batch_size), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"{name} is {value}; at least 1 is needed.")
    params = classifier.params
    nominal = 1.0
    if mask is None:
        mask = masks.dense(params)
    else:
        masks.validate(params, mask)
        covered = tuple(path for path, leaf in trees.flatten(mask).items() if np.ndim(leaf))
        nominal = masks.density(params, mask, covered) if covered else 1.0
    classifier = classifier.with_params(masks.apply(params, mask))
    layers = count(classifier, image_shape)
    leaves = jax.tree.leaves(classifier.params)
    progress(0, repeats)
    compiled = _compiled(classifier, image_shape, batch_size)
    latency = _fastest(compiled, classifier, image_shape, batch_size, repeats, progress)
    return Efficiency(
        layers=layers,
        parameters=trees.size(classifier.params),
        nonzero=sum(int(np.count_nonzero(leaf)) for leaf in leaves),
        nominal_density=nominal,
        density=sum(x.nonzero for x in layers) / sum(x.weights for x in layers),
        flops=sum(x.flops for x in layers),
        effective_flops=sum(x.effective_flops for x in layers),
        bytes_on_disk=sum(x.nbytes for x in packing.pack(classifier.params, mask).values()),
        latency=latency,
        throughput=batch_size / latency,
        batch_size=batch_size,
        peak_memory=_peak_memory(compiled),
    )


def count(classifier: Classifier, image_shape: tuple[int, ...]) -> tuple[Layer, ...]:
    """Weights and work of each layer, read from the network's equations; nothing is run.

    A weight that is used twice costs twice. Products of two activations are not counted.
    """
    shapes = jax.eval_shape(lambda: classifier.variables)
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    program = jaxprs.flat(classifier.apply_fn, shapes, image)
    names = dict(zip(program.inputs, trees.flatten(shapes), strict=False))
    positions: dict[str, int] = {}
    for path, number in _uses(program, jaxprs.origins(program, names)):
        positions[path] = positions.get(path, 0) + number
    leaves = trees.flatten(classifier.params)
    layers = []
    for path in trees.prunable(classifier.params):
        size, nonzero = int(np.size(leaves[path])), int(np.count_nonzero(leaves[path]))
        times = 2 * positions.get(f"params/{path}", 0)
        layers.append(Layer(path, size, nonzero, times * size, times * nonzero))
    return tuple(layers)


def _uses(program: jaxprs.Flat, names: Mapping[core.Var, str]):
    """(path of a weight, how often each of its numbers is multiplied) for every product with it."""
    for eqn in program.eqns:
        if eqn.primitive.name not in ("conv_general_dilated", "dot_general"):
            continue
        for operand in eqn.invars[::-1]:
            if jaxprs.is_variable(operand) and operand in names:
                yield names[operand], _positions(eqn, operand)
                break


def _positions(eqn: core.JaxprEqn, weight: core.Var) -> int:
    out = eqn.outvars[0].aval.shape
    if eqn.primitive.name == "conv_general_dilated":
        batch, _, *space = eqn.params["dimension_numbers"].out_spec
        return math.prod(out[axis] for axis in (batch, *space))
    (lhs_sums, rhs_sums), _ = eqn.params["dimension_numbers"]
    sums = lhs_sums if weight is eqn.invars[0] else rhs_sums
    contracted = math.prod(weight.aval.shape[axis] for axis in sums)
    return math.prod(out) * contracted // math.prod(weight.aval.shape)


def _compiled(classifier: Classifier, image_shape: tuple[int, ...], batch_size: int):
    images = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.float32)
    return (
        jax.jit(lambda classifier, images: classifier(images)).lower(classifier, images).compile()
    )


def _fastest(compiled, classifier, image_shape, batch_size, repeats, progress) -> float:
    images = jnp.zeros((batch_size, *image_shape), jnp.float32)
    compiled(classifier, images).block_until_ready()
    seconds = []
    for number in range(repeats):
        start = time.perf_counter()
        compiled(classifier, images).block_until_ready()
        seconds.append(time.perf_counter() - start)
        progress(number + 1, repeats)
    return min(seconds)


def _peak_memory(compiled) -> int:
    analysis = compiled.memory_analysis()
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
    )
