"""Criteria that look at the network without a filter: what the rest of it then says."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from prunejax import trees
from prunejax.pruning.activations import layers
from prunejax.pruning.activations.layers import ApplyFn, Params, Traced, Variables
from prunejax.pruning.activations.maps import check, in_batches
from prunejax.pruning.evidence import widened

# (variables, kernel's path among the parameters, index of a unit, traced) -> variables without it
Ablate = Callable[[Variables, str, Any], Variables]


@dataclasses.dataclass(frozen=True)
class ZeroUnits:
    """Zeroes a unit: its filter, and its entries of bias and normalisation, statistics included.

    Attributes:
      own: by path of a kernel what makes its units, as (path among the variables, axis).
    """

    own: tuple[tuple[str, tuple[tuple[str, int], ...]], ...]

    def __call__(self, variables: Variables, path: str, unit: Any) -> Variables:
        axes = dict(dict(self.own)[path])

        def leaf(name, value):
            if name not in axes:
                return value
            at = jnp.arange(value.shape[axes[name]]) == unit
            shape = [-1 if axis == axes[name] else 1 for axis in range(value.ndim)]
            return jnp.where(at.reshape(shape), jnp.zeros_like(value), value)

        return trees.map_with_path(leaf, variables)


def zero_units(apply_fn: ApplyFn, variables: Variables, images: jax.Array) -> ZeroUnits:
    """How to remove a unit from this network: `ablate(variables, path, unit) -> variables`.

    A layer's bias and normalisation are those that come, elementwise, before its next ReLU and
    before anything else is added to it: the normalisation of a sum belongs to no summand.

    Args:
      apply_fn, variables, images: the network; of the images only the shape is looked at.
    """
    return _zero_units(layers.trace(apply_fn, variables, images))


def kl(
    apply_fn: ApplyFn,
    variables: Variables,
    images: jax.Array,
    ablate: Ablate | None = None,
    *,
    batch_size: int = 256,
) -> Params:
    """How far the predictions move when a filter goes: `mean_x sum_c q (log q - log p)`.

    p are the network's softmax outputs, q those without the filter; q comes first, as in Jordao
    and Pedrini (2021). One pass over the images for each unit, one compiled program for each layer.

    Args:
      apply_fn: the network in evaluation mode, hashable.
      variables: `{"params": ..., ...}`.
      images: `[N, ...]` in [0, 1].
      ablate: gives the variables without a unit; hashable, the unit's index is traced.
        `zero_units` by default.
      batch_size: so many images at a time; the scores do not depend on it.

    Returns:
      Scores in the structure of the parameters, in nats, in [0, inf).

    Raises:
      ValueError: no images, or a network without such layers.
    """
    traced = check(apply_fn, variables, images, batch_size)
    ablate = _zero_units(traced) if ablate is None else ablate
    by_path = {}
    for path, layer in traced.scored.items():
        divergences = _divergences(
            apply_fn, ablate, path, layer.units, batch_size, variables, images
        )
        by_path[path] = divergences.mean(axis=0)
    return layers.scores(variables["params"], traced.layers, by_path)


def cka(
    apply_fn: ApplyFn, variables: Variables, images: jax.Array, ablate: Ablate | None = None
) -> Params:
    """How far the features before the last layer move when a filter goes: 1 - their linear CKA.

    With the features' columns centred, `CKA(X, Y) = |X'Y|^2 / (|X'X| |Y'Y|)` (Kornblith et al.
    2019), 1 where the features differ by a rotation and a scale only. It is taken over all images
    at once, for it is not a mean over samples: a few hundred images are enough.

    Args and Raises as in `kl`.

    Returns:
      Scores in the structure of the parameters, in [0, 1]; 1 where no feature varies any more.
    """
    traced = check(apply_fn, variables, images, len(images))
    if len(images) < 2:
        raise ValueError("images has one entry; features are compared by how they vary.")
    ablate = _zero_units(traced) if ablate is None else ablate
    by_path = {
        path: _dissimilarities(apply_fn, ablate, path, layer.units, variables, images)
        for path, layer in traced.scored.items()
    }
    return layers.scores(variables["params"], traced.layers, by_path)


def _zero_units(traced: Traced) -> ZeroUnits:
    return ZeroUnits(tuple((path, layer.own) for path, layer in traced.layers.items()))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _divergences(apply_fn, ablate, path, units, batch_size, variables, images):
    """`[N, units]` divergences."""

    def of_batch(images):
        whole = log_probabilities(apply_fn, variables, images)

        def without(unit):
            return divergence(
                whole, log_probabilities(apply_fn, ablate(variables, path, unit), images)
            )

        return jax.lax.map(without, jnp.arange(units)).T

    return in_batches(of_batch, images, batch_size)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _dissimilarities(apply_fn, ablate, path, units, variables, images):
    """`[units]` dissimilarities."""

    def of_images(images):
        whole = similarities(apply_fn, variables, images)

        def without(unit):
            return dissimilarity(
                whole, similarities(apply_fn, ablate(variables, path, unit), images)
            )

        return jax.lax.map(without, jnp.arange(units))

    return in_batches(of_images, images, len(images))


def log_probabilities(apply_fn: ApplyFn, variables: Variables, images: jax.Array) -> jax.Array:
    """`[N, classes]` logarithms of the softmax of the logits."""
    return jax.nn.log_softmax(widened(apply_fn(variables, images)))


def divergence(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """`[N]` sums of q (log q - log p) over the classes, in nats."""
    return jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)


def similarities(apply_fn, variables, images):
    """`[N, N]` inner products of the centred features, of norm 1, or zeros."""
    traced = layers.trace(apply_fn, variables, images)
    last = [path for path in traced.layers if path in traced.last][-1]
    (features,) = traced.values([traced.layers[last].inputs], variables, images)
    features = widened(features).reshape(len(images), -1)
    centred = features - features.mean(axis=0)
    gram = centred @ centred.T
    norm = jnp.linalg.norm(gram)
    varies = norm > 1e-12 * jnp.sum(features**2)  # more than the mean's rounding error
    return jnp.where(varies, gram / jnp.where(varies, norm, 1), 0)


def dissimilarity(first: jax.Array, second: jax.Array) -> jax.Array:
    """1 - <K, L> for K and L of norm 1 or 0, as |K - L|^2 / 2: without the cancellation."""
    half = jnp.sum((first - second) ** 2) / 2
    return jnp.where(jnp.any(first) != jnp.any(second), 1.0, half)
