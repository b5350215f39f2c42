"""FPGM: filters that others can stand in for."""

import jax
import jax.numpy as jnp

from prunejax import trees
from prunejax.pruning.evidence import Criterion, Evidence, Params, widened


def geometric_median(params: Params, evidence: Evidence) -> Params:
    """sum_k ||F_j - F_k||_2 over the filters F_k of the layer, `[1, ..., 1, out]`.

    Filters near the geometric median of their layer are redundant, whatever their norm. He et al.
    (2019). Distances grow with a layer's fan-in, so rank within layers ("uniform").
    """
    paths = evidence.weights(params)

    def score(path, w):
        if path not in paths:
            return jnp.zeros(())
        filters = widened(w).reshape(-1, w.shape[-1]).T
        # One filter at a time: all differences at once would take out^2 * fan_in numbers.
        distances = jax.lax.map(lambda f: jnp.linalg.norm(filters - f, axis=1).sum(), filters)
        return distances.reshape(*[1] * (w.ndim - 1), -1)

    return trees.map_with_path(score, params)


GEOMETRIC_MEDIAN = Criterion("geometric_median", geometric_median)
