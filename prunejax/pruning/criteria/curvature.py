"""Criteria of second order: GraSP by a Hessian-vector product, the diagonal of the Fisher matrix.

Both need the objective itself, for one gradient does not tell them.
"""

import functools

import jax
import jax.numpy as jnp

from prunejax import trees
from prunejax.pruning.criteria import gradients
from prunejax.pruning.evidence import Batch, Criterion, Evidence, Params, widened


def grasp(params: Params, evidence: Evidence) -> Params:
    """W * (H g), half of what |g|^2, the gradient flow, loses to first order without the weight.

    GraSP (Wang et al. 2020) writes S = -w * (H g) and removes the *highest* S; here
    higher is kept, so the sign is turned. H and g are over the weights that are scored: biases and
    normalisation are held. Of a unit, the sum over its weights.
    """
    paths = evidence.allowed or evidence.weights(params)
    gradient = gradients.mean_gradient(params, evidence)
    direction = trees.map_with_path(
        lambda path, g: g if path in paths else jnp.zeros_like(g), gradient
    )
    curved = [_hessian_times(evidence.loss, params, b, direction) for b in evidence.batches]
    return gradients.multiplied(params, gradients.mean(curved))


def fisher(params: Params, evidence: Evidence) -> Params:
    """The mean over the examples of g_i^2, the diagonal of the empirical Fisher matrix.

    g_i is the gradient of `evidence.loss` for a batch of example i alone. All gradients of a batch
    are held at once: batch size times the size of the parameters. Theis et al. (2018).
    """
    sums = [_sum_of_squares(evidence.loss, params, batch) for batch in evidence.batches]
    examples = sum(len(jax.tree.leaves(batch)[0]) for batch in evidence.batches)
    return jax.tree.map(lambda *s: sum(s) / examples, *sums)


@functools.partial(jax.jit, static_argnums=0)
def _hessian_times(loss: gradients.Loss, params: Params, batch: Batch, direction: Params) -> Params:
    return jax.jvp(lambda p: jax.grad(loss)(p, batch), (params,), (direction,))[1]


@functools.partial(jax.jit, static_argnums=0)
def _sum_of_squares(loss: gradients.Loss, params: Params, batch: Batch) -> Params:
    def of_example(example):
        return jax.grad(loss)(params, jax.tree.map(lambda x: x[None], example))

    per_example = jax.vmap(of_example)(batch)
    return jax.tree.map(lambda g: jnp.sum(jnp.square(widened(g)), axis=0), per_example)


GRASP = Criterion("grasp", grasp, needs=("loss", "batches"), aggregate="sum")
FISHER = Criterion("fisher", fisher, needs=("loss", "batches"))
