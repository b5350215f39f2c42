"""Learned scores with a straight-through mask, as in HYDRA.

scores = learned.initial(params)
removal = pruner.removal(params, 0.9)  # Pruner("learned")

def objective(scores):
    mask = pruner.mask(params, pruner.initial(params), removal, Evidence(scores=scores))
    return loss(learned.effective(params, scores, mask))  # differentiable in the scores
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from prunejax import trees
from prunejax.pruning.evidence import Criterion, Evidence, Params

Mask = Any


def learned(params: Params, evidence: Evidence) -> Params:
    """|s| of the scores in the evidence (HYDRA, Sehwag et al. 2020)."""
    # The ranking has no gradient; `effective` gives the scores theirs.
    return jax.tree.map(
        lambda s: jnp.abs(jax.lax.stop_gradient(s)), evidence.like("scores", params)
    )


def initial(params: Params) -> Params:
    """Scores s = sqrt(6 / fan_in) w / max|w|, so that at first |s| ranks as |w| does.

    Sehwag et al. (2020). fan_in is the product of all axes but the last, as Flax and
    Haiku lay weights out. Leaves that are no weights (`trees.weights`) get zeros.
    """
    weights = trees.weights(params)

    def score(path, w):
        if path not in weights:
            return jnp.zeros_like(w)
        fan_in = math.prod(w.shape[:-1])
        largest = jnp.max(jnp.abs(w))
        return math.sqrt(6 / fan_in) * w / jnp.where(largest > 0, largest, 1)

    return trees.map_with_path(score, params)


@jax.custom_vjp
def straight_through(importance: jax.Array, keep: jax.Array) -> jax.Array:
    """`keep` as numbers 0 and 1, with the derivative of the identity: d m / d importance = 1.

    Args:
      importance: |s|, of any shape.
      keep: booleans that broadcast against it.
    """
    return jnp.broadcast_to(keep, importance.shape).astype(importance.dtype)


def _forward(importance, keep):
    return straight_through(importance, keep), None


def _backward(_, cotangent):
    return cotangent, None


straight_through.defvjp(_forward, _backward)


def effective(params: Params, scores: Params, mask: Mask) -> Params:
    """Weights w m(s), under the mask, differentiable in both the parameters and the scores.

    dL/ds = sign(s) w dL/d(w m), also for what the mask removes (so it can come back); where the
    scores have the shape of units, summed over the weights of the unit.

    Args:
      params: the weights w.
      scores: s, of the same structure; leaves broadcast against the weights.
      mask: m, what the scores keep; leaves that are scalar are not pruned, and their scores get no
        gradient.
    """

    def leaf(w, s, keep):
        return w * straight_through(jnp.abs(s), keep) if jnp.ndim(keep) else w

    return jax.tree.map(leaf, params, scores, mask)


LEARNED = Criterion("learned", learned, needs=("scores",), remedy="The method 'hydra' learns them.")
