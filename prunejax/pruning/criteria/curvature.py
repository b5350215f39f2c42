"""Criteria of second order: GraSP by a Hessian-vector product, the diagonal of the Fisher matrix.

Both need the objective itself, for one gradient does not tell them.
"""

import functools

import jax
import jax.numpy as jnp

from prunejax import masks, trees
from prunejax.canonical import canonical
from prunejax.pruning.criteria import gradients
from prunejax.pruning.evidence import Batch, Criterion, Evidence, Params, examples_in, widened


def grasp(params: Params, evidence: Evidence) -> Params:
    """The product w * (H g): to first order half of what the gradient flow |g|^2 loses without w.

    GraSP (Wang et al. 2020) writes S = -w * (H g) and removes the *highest* S; here
    higher is kept, so the sign is turned. H and g are over what is left of the weights that are
    scored: biases and normalisation are held. Of a unit, the sum over its weights.
    """
    paths = evidence.allowed or evidence.weights(params)
    gradient = gradients.mean_gradient(params, evidence)
    direction = trees.map_with_path(
        lambda path, g: g if path in paths else jnp.zeros_like(g), gradient
    )
    if evidence.mask is not None:
        direction = masks.apply(direction, evidence.mask)
    curved = [_hessian_times(evidence.loss, params, b, direction) for b in evidence.batches]
    return gradients.multiplied(params, gradients.mean(curved, evidence.batches))


def fisher(params: Params, evidence: Evidence) -> Params:
    """F = 1/N sum_i g_i^2, where the loss is -log p(y | x) the diagonal of the empirical Fisher.

    g_i is the gradient of the loss of example i alone, at its own label; the Fisher matrix proper
    draws labels from the network. Theis et al. (2018) remove the weights of the lowest F w^2 / 2,
    by which the loss rises without the weight; here F itself is the score.

    The loss is called for a batch of one, and `in_evaluation`, for batch normalisation cannot take
    its statistics from one example. One follows the other; memory does not grow with their number.
    """
    loss = gradients.in_evaluation(evidence.loss)
    sums = [_sum_of_squares(loss, params, batch) for batch in evidence.batches]
    examples = sum(map(examples_in, evidence.batches))
    return jax.tree.map(lambda *s: sum(s) / examples, *sums)


@functools.partial(jax.jit, static_argnums=0)
def _hessian_times(loss: gradients.Loss, params: Params, batch: Batch, direction: Params) -> Params:
    def product(params, batch, direction):
        return jax.jvp(lambda p: jax.grad(loss)(p, batch), (params,), (direction,))[1]

    return canonical(product)(params, batch, direction)


@functools.partial(jax.jit, static_argnums=0)
def _sum_of_squares(loss: gradients.Loss, params: Params, batch: Batch) -> Params:
    gradient = canonical(jax.grad(loss))

    def add(sums, example):
        g = gradient(params, jax.tree.map(lambda x: x[None], example))
        return jax.tree.map(lambda total, g: total + jnp.square(widened(g)), sums, g), None

    zeros = jax.tree.map(lambda w: jnp.zeros_like(widened(w)), params)
    return jax.lax.scan(add, zeros, batch)[0]


GRASP = Criterion("grasp", grasp, needs=("loss", "batches"), aggregate="sum")
FISHER = Criterion("fisher", fisher, needs=("loss", "batches"))
