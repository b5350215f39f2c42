"""LAMP: magnitudes that can be ranked across layers."""

import jax
import jax.numpy as jnp

from prunejax import trees
from prunejax.pruning.evidence import Criterion, Evidence, Params, widened


def lamp(params: Params, evidence: Evidence) -> Params:
    """w^2 / (sum of w'^2 over the weights of the layer with |w'| >= |w|), in [0, 1].

    Made for the allocation "global", where it decides each layer's sparsity: the largest weight of
    every layer scores 1 (1/m where m are equally large), so layers do not collapse. Within a layer
    the ranking is that of |w|. Lee et al. (2021); equal weights share their score here.
    """
    paths = evidence.weights(params)

    def score(path, w):
        return of_scores(jnp.abs(widened(w))) if path in paths else jnp.zeros(())

    return trees.map_with_path(score, params)


def of_scores(scores: jax.Array) -> jax.Array:
    """s^2 / (sum of s'^2 over the scores s' >= s); what is below 0 stays as it is.

    Args:
      scores: those of one layer, of any shape and float32 at least.
    """
    # A common factor cancels, and without it small scores would underflow when squared.
    finite = jnp.minimum(scores, jnp.finfo(scores.dtype).max)
    largest = jnp.max(finite, initial=0)
    squares = jnp.square(jnp.maximum(finite, 0) / jnp.where(largest > 0, largest, 1)).ravel()
    ascending = jnp.sort(squares)
    at_least = jnp.cumsum(ascending[::-1])[::-1]
    # "left": from the first of the equal ones on.
    total = at_least[jnp.searchsorted(ascending, squares, side="left", method="sort")]
    lamp_scores = (squares / jnp.where(total > 0, total, 1)).reshape(scores.shape)
    return jnp.where(scores < 0, scores, lamp_scores)


LAMP = Criterion("lamp", lamp)
