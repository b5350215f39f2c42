"""FPGM: filters that others can stand in for."""

import jax
import jax.numpy as jnp

from prunejax import trees
from prunejax.pruning.evidence import Criterion, Evidence, Params, widened


def geometric_median(params: Params, evidence: Evidence) -> Params:
    """sum_k ||F_j - F_k||_2 over the filters F_k that are left of the layer, `[1, ..., 1, out]`.

    Filters near the geometric median of their layer are redundant, whatever their norm. He et al.
    (2019). Distances grow with a layer's fan-in, so rank within layers ("uniform").
    """
    paths = evidence.weights(params)
    masks = {} if evidence.mask is None else trees.flatten(evidence.mask)

    def score(path, w):
        if path not in paths:
            return jnp.zeros(())
        filters = widened(w).reshape(-1, w.shape[-1]).T
        kept = jnp.broadcast_to(masks.get(path, True), w.shape).reshape(-1, w.shape[-1]).any(axis=0)

        # One filter at a time: all differences at once would take out^2 * fan_in numbers.
        def to_the_others(f):
            return jnp.where(kept, jnp.linalg.norm(filters - f, axis=1), 0).sum()

        distances = jax.lax.map(to_the_others, filters)
        return distances.reshape(*[1] * (w.ndim - 1), -1)

    return trees.map_with_path(score, params)


GEOMETRIC_MEDIAN = Criterion("geometric_median", geometric_median)
