"""What a network costs: weights, work, bytes, time, memory.

A mask alone makes nothing faster: a masked weight is multiplied like any other. `effective_flops`
is the work that hardware which skips zeros would have; `latency` is what this machine takes, with
convolutions in the layout that is fast here (`canonical`), as in attacks and training.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import checks, masks, packing, trees
from prunejax.canonical import canonical
from prunejax.classifier import Classifier
from prunejax.evaluation import work
from prunejax.shrinking import structure


class Efficiency(NamedTuple):
    """What a network costs.

    Attributes:
      layers: of its weights (leaves of rank two or more), in the order of their paths.
      parameters, nonzero: numbers in all parameters, and how many of them are not zero.
      nominal_density: share of the weights that the mask might have removed and keeps.
      nominal_densities: the same of each such weight, by path: one that is kept whole has 1, one
        that the mask does not cover is absent.
      density: share of all weights that are not zero; 1 where there are none.
      flops, effective_flops: of one image, additions and multiplications.
      bytes_on_disk: of the file with all variables and the mask, packed (`packing`).
      latency: seconds for a batch, the fastest of several.
      throughput: images a second at that.
      batch_size: of that batch.
      peak_memory: bytes that the compiled program needs for it: arguments, results, temporaries.
    """

    layers: tuple[work.LayerCost, ...]
    parameters: int
    nonzero: int
    nominal_density: float
    nominal_densities: Mapping[str, float]
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
      ValueError: variables without "params", a mask of another structure, a batch size or a number
        of repeats below 1, and as in `work.count`.
    """
    for name, value in (("batch_size", batch_size), ("repeats", repeats)):
        checks.integer(name, value, least=1)
    structure.require_params(classifier.variables)
    params = classifier.params
    mask = masks.dense(params) if mask is None else mask
    nominal, kept = masks.nominal_density(params, mask), masks.kept(params, mask)
    sizes = {path: np.size(leaf) for path, leaf in trees.flatten(params).items()}
    nominal_of_each = {path: kept[path] / sizes[path] for path in masks.covered(params, mask)}
    classifier = classifier.with_params(masks.apply(params, mask))
    layers = work.count(classifier, image_shape)
    leaves = jax.tree.leaves(classifier.params)
    whole_mask = masks.of_variables(classifier.variables, mask)
    progress(0, repeats)
    compiled = _compiled(classifier, image_shape, batch_size)
    latency = _fastest(compiled, classifier, image_shape, batch_size, repeats, progress)
    return Efficiency(
        layers=layers,
        parameters=trees.size(classifier.params),
        nonzero=sum(int(np.count_nonzero(leaf)) for leaf in leaves),
        nominal_density=nominal,
        nominal_densities=nominal_of_each,
        density=sum(x.nonzero for x in layers) / sum(x.weights for x in layers) if layers else 1.0,
        flops=sum(x.flops for x in layers),
        effective_flops=sum(x.effective_flops for x in layers),
        bytes_on_disk=len(packing.serialized(classifier.variables, whole_mask)),
        latency=latency,
        throughput=batch_size / latency,
        batch_size=batch_size,
        peak_memory=_peak_memory(compiled),
    )


def _compiled(classifier: Classifier, image_shape: tuple[int, ...], batch_size: int):
    images = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.float32)
    forward = canonical(lambda classifier, images: classifier(images))
    return jax.jit(forward).lower(classifier, images).compile()


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
