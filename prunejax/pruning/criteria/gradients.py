"""Criteria that take one gradient g of the objective, averaged over the examples of the evidence.

They are the adversarial criteria where the objective is. Inside `pruning.optimizer` the gradient
is that of the step, but for `taylor`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from prunejax.canonical import canonical
from prunejax.pruning.evidence import Batch, Criterion, Evidence, Params, examples_in, widened

Loss = Callable[[Params, Batch], jax.Array]


def mean(trees: Sequence[Any], batches: Sequence[Batch]) -> Any:
    """The mean of the batches' trees, leaf by leaf, each batch as heavy as its examples."""
    numbers = [examples_in(batch) for batch in batches]
    shares = [number / sum(numbers) for number in numbers]

    def leaf(*leaves):
        return sum(share * leaf for share, leaf in zip(shares, leaves, strict=True))

    return jax.tree.map(leaf, *trees)


# By the objective, not by a closure of it: rounds of pruning share one compiled program.
@functools.partial(jax.jit, static_argnums=0)
def gradient_of(loss: Loss, params: Params, batch: Batch) -> Params:
    """The derivative d loss / d params on one batch."""
    return canonical(jax.grad(loss))(params, batch)


def mean_gradient(params: Params, evidence: Evidence) -> Params:
    """The mean over the examples of the objective's gradient, or the one that is known already."""
    if evidence.loss is None or not evidence.batches:
        return evidence.like("grads", params)
    batches = evidence.batches
    return mean([gradient_of(evidence.loss, params, batch) for batch in batches], batches)


def in_evaluation(loss: Loss) -> Loss:
    """The same objective by stored statistics of normalisation, where the loss says which that is.

    That of `training.evidence` does; its own normalises a batch by the batch's statistics.
    """
    return getattr(loss, "in_evaluation", loss)


def multiplied(first: Params, second: Params) -> Params:
    """The product of two trees, leaf by leaf, in float32 at least."""
    return jax.tree.map(lambda x, y: widened(x) * widened(y), first, second)


def gradient(params: Params, evidence: Evidence) -> Params:
    """|g|, what RigL regrows by (Evci et al. 2020, section 3)."""
    return jax.tree.map(jnp.abs, mean_gradient(params, evidence))


def connection_sensitivity(params: Params, evidence: Evidence) -> Params:
    """The product g w, to first order the fall of the loss when the weight is removed; signed."""
    return multiplied(mean_gradient(params, evidence), params)


def taylor(params: Params, evidence: Evidence) -> Params:
    """The product g w, of which (g w)^2 scores a weight and (sum of g w)^2 a unit.

    Those squares are, to first order, what the removal changes the loss by, squared (Molchanov et
    al. 2019). The loss is taken `in_evaluation`: while a batch is normalised by its own statistics,
    it does not depend on the scale of a filter before that, and the sum of g w over that filter is
    zero but for rounding. So the gradient of a training step does not do.
    """
    return connection_sensitivity(params, evidence._replace(loss=in_evaluation(evidence.loss)))


def snip(params: Params, evidence: Evidence) -> Params:
    """|g w|, SNIP (Lee et al. 2019, without its normalisation, which ranks alike)."""
    return jax.tree.map(jnp.abs, connection_sensitivity(params, evidence))


GRADIENT = Criterion("gradient", gradient, needs=("gradient",))
SNIP = Criterion("snip", snip, needs=("gradient",))
TAYLOR = Criterion(
    "taylor",
    taylor,
    needs=("loss", "batches"),
    aggregate="sum",
    finish=jnp.square,
    remedy="By the gradient of a step, 'snip' ranks single weights alike.",
)
