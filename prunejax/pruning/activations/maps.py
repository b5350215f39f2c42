"""Criteria that look at the maps of filters: how large, how rich, how telling they are."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import checks
from prunejax.canonical import canonical
from prunejax.pruning.activations import layers
from prunejax.pruning.activations.layers import ApplyFn, Params, Traced, Variables
from prunejax.pruning.evidence import widened


def expected_abs(
    apply_fn: ApplyFn, variables: Variables, images: jax.Array, *, batch_size: int = 256
) -> Params:
    """ExpectedABS: the mean over samples and positions of |map after the next ReLU|, in [0, inf).

    DropNet's score (Tan and Motani 2020), as Jordao and Pedrini (2021) use it: after a residual
    sum, where that comes before the ReLU. `feature_maps` says what the map is.

    Args:
      apply_fn: the network in evaluation mode, hashable.
      variables: `{"params": ..., ...}`.
      images: `[N, ...]` in [0, 1].
      batch_size: so many images at a time; the scores do not depend on it.

    Returns:
      Scores in the structure of the parameters, as this package's docstring says.

    Raises:
      ValueError: no images, or a network without such layers.
    """
    traced = check(apply_fn, variables, images, batch_size)
    samples = _per_sample(apply_fn, mean_abs, batch_size, variables, images)
    means = {path: x.mean(axis=0) for path, x in samples.items()}
    return layers.scores(variables["params"], traced.layers, means)


def hrank(
    apply_fn: ApplyFn, variables: Variables, images: jax.Array, *, batch_size: int = 256
) -> Params:
    """HRank: the mean over samples of the map's rank as an H x W matrix (Lin et al. 2020).

    Singular values above `max(H, W)` times the machine's precision times the largest one count.
    The map of a dense layer's unit is a number: its rank is 1 where it is not zero. The map is that
    of `expected_abs`, after the next ReLU, as in the code of both Lin et al. and Jordao and Pedrini
    (2021): before it, where hardly a number is zero, nearly every map has full rank.

    Args, Returns and Raises as in `expected_abs`; scores in [0, min(H, W)].
    """
    traced = check(apply_fn, variables, images, batch_size)
    samples = _per_sample(apply_fn, rank, batch_size, variables, images)
    means = {path: x.mean(axis=0) for path, x in samples.items()}
    return layers.scores(variables["params"], traced.layers, means)


def pls_vip(
    apply_fn: ApplyFn,
    variables: Variables,
    images: jax.Array,
    labels: jax.Array,
    *,
    batch_size: int = 256,
) -> Params:
    """PLS + VIP: how much of the labels' variation goes through a filter (Jordao et al. 2019).

    The maxima over positions of the layers' own outputs form `X [N, p]`, the one-hot labels `Y`. An
    own output comes before ReLU and residual sum, so that a filter answers for itself alone; a bias
    or a normalisation of positive scale behind it would not change the scores. Partial least
    squares with two components on columns of unit variance gives scores T, weights W and loadings
    Q of Y, and with `s_h = diag(T'T Q'Q)_h`

        VIP_j = sqrt(p sum_h s_h (w_jh / |w_h|)^2 / sum_h s_h),

    so that the squares sum to p over all layers: scores of different layers can be compared.

    Args:
      apply_fn, variables, images, batch_size: as in `expected_abs`.
      labels: `[N]` integers; at least two different ones.

    Returns:
      Scores in the structure of the parameters, in [0, sqrt(p)].

    Raises:
      ValueError: as in `expected_abs`, labels of another number or of one class only, or filters
        that are all the same on every image.
    """
    if len(labels) != len(images):
        raise ValueError(f"labels has {len(labels)} entries for {len(images)} images.")
    traced = check(apply_fn, variables, images, batch_size)
    pooled = _per_sample(apply_fn, maximum, batch_size, variables, images, own=True)
    features = jnp.concatenate(list(pooled.values()), axis=1)
    if isinstance(features, jax.core.Tracer) or isinstance(labels, jax.core.Tracer):
        shape = jax.ShapeDtypeStruct(features.shape[1:], jnp.float32)
        importance = jax.pure_callback(vip, shape, features, labels)
    else:
        importance = vip(features, labels)
    ends = np.cumsum([x.shape[1] for x in pooled.values()])[:-1]
    by_path = dict(zip(pooled, jnp.split(importance, ends), strict=True))
    return layers.scores(variables["params"], traced.layers, by_path)


def vip(features: jax.Array, labels: jax.Array) -> np.ndarray:
    """`[p]`: the VIP of each of p features `[N, p]` for the labels `[N]`; see `pls_vip`."""
    from sklearn.cross_decomposition import PLSRegression

    features, labels = np.asarray(features), np.asarray(labels)
    if len(np.unique(labels)) < 2:
        raise ValueError("labels holds fewer than two classes; PLS has nothing to tell apart.")
    if not np.ptp(features, axis=0).any():
        raise ValueError("images give each filter one and the same map; PLS has nothing to use.")
    one_hot = (labels[:, None] == np.unique(labels)).astype(np.float64)
    components = min(2, *features.shape)
    pls = PLSRegression(components, scale=True).fit(features.astype(np.float64), one_hot)
    scores, weights, loadings = pls.x_scores_, pls.x_weights_, pls.y_loadings_
    explained = np.diag(scores.T @ scores @ loadings.T @ loadings)
    # Where nothing is left for the second component, its weights are zeros.
    norms = np.maximum(np.linalg.norm(weights, axis=0), np.finfo(np.float64).tiny)
    share = (weights / norms) ** 2 @ explained / explained.sum()
    return np.sqrt(features.shape[1] * share).astype(np.float32)


def check(apply_fn: ApplyFn, variables: Variables, images: jax.Array, batch_size: int) -> Traced:
    """The network's layers, once the arguments are known to make sense.

    Raises:
      ValueError: no images, a batch size below 1, or no layer to score.
    """
    if not len(images):
        raise ValueError("images is empty; criteria that look at data need some.")
    checks.integer("batch_size", batch_size, least=1)
    one = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
    traced = layers.trace(apply_fn, variables, one)
    if not traced.scored:
        raise ValueError(
            f"apply_fn has no layer before its last, {sorted(traced.last)}, whose units are the "
            "classes: nothing can be scored."
        )
    return traced


def in_batches(function: Callable[[jax.Array], Any], images: jax.Array, batch_size: int) -> Any:
    """What a function of `[n, ...]` images gives, over all images, in full float32."""

    def of_all(images):
        if len(images) <= batch_size:
            return function(images)
        padded = jnp.concatenate([images, images[: -len(images) % batch_size]])
        parts = jax.lax.map(function, padded.reshape(-1, batch_size, *images.shape[1:]))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: len(images)], parts)

    with jax.default_matmul_precision("highest"):
        return canonical(of_all)(images)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), static_argnames="own")
def _per_sample(
    apply_fn, statistic, batch_size, variables, images, *, own=False
) -> dict[str, jax.Array]:
    """By path `[N, units]`: a statistic of each sample's map, or, if own, of its bare output."""

    def of_batch(images):
        traced = layers.trace(apply_fn, variables, images)
        maps = traced.maps(traced.scored, variables, images, own=own)
        return {path: statistic(widened(x)) for path, x in maps.items()}

    return in_batches(of_batch, images, batch_size)


# -- statistics of maps [N, ..., units] -> [N, units]


def mean_abs(maps: jax.Array) -> jax.Array:
    """The mean over positions of |map|."""
    return jnp.abs(maps).mean(axis=tuple(range(1, maps.ndim - 1)))


def maximum(maps: jax.Array) -> jax.Array:
    """The maximum over positions."""
    return maps.max(axis=tuple(range(1, maps.ndim - 1)))


def rank(maps: jax.Array) -> jax.Array:
    """The rank of each map as an H x W matrix."""
    matrices = jnp.moveaxis(maps, -1, 1)
    height = matrices.shape[2] if matrices.ndim > 2 else 1
    return jnp.linalg.matrix_rank(matrices.reshape(*matrices.shape[:2], height, -1))
