"""A look at the clean images before an attack: gradients, outputs, and where one step leads."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from prunejax import norms
from prunejax.attacks import losses
from prunejax.attacks.attack import Attack
from prunejax.attacks.diagnostics import Diagnostics
from prunejax.attacks.programs import wanted
from prunejax.canonical import canonical
from prunejax.classifier import Classifier


class Look(NamedTuple):
    """What is seen of each image of a batch.

    Attributes:
      logits: `[B, C]`.
      zero: whether the gradient of the loss is exactly zero; of a network that has none to give,
        which only black-box attacks take, False as `falls` is.
      non_finite: whether a logit or an entry of the gradient is not finite.
      probabilities: whether the outputs lie in [0, 1] and add up to 1.
      reached: whether it is what the attacker wants already.
      falls: whether one step from the clean image, the maximum of the linearised loss over ball and
        box, makes it what the attacker wants when it was not so before.
    """

    logits: jax.Array
    zero: jax.Array
    non_finite: jax.Array
    probabilities: jax.Array
    reached: jax.Array
    falls: jax.Array


def inspect(
    attack: Attack,
    classifier: Classifier,
    images: np.ndarray,
    labels: np.ndarray,
    eps: np.ndarray,
    *,
    width: int,
    mesh: Mesh,
) -> Diagnostics:
    """Looks at all clean images, a batch of `width` at a time through one program.

    Args:
      attack: that is to follow.
      classifier: under attack.
      images, labels, eps: `[N, ...]`, `[N]` and `[N]`; an infinite budget leads to a corner of the
        box.
      width: images at a time, a multiple of the mesh's devices; the last batch is padded.
      mesh: of the devices that share a batch.

    Returns:
      What was seen; `weaker` are all that fall to one step, for the attack has found nothing yet.
    """
    loss = attack.loss
    with_gradient = "margin" if loss is None or loss in losses.FROM_CLEAN else loss
    number, seen = len(images), []

    def batch_of(which):
        of = which % number
        return images[of], wanted(attack, labels[of]), eps[of]

    lanes = np.arange(width)
    program = _program(with_gradient, attack.norm, mesh)
    if not (attack.uses_gradients or _is_traceable(program, classifier, *batch_of(lanes))):
        program = _program(None, attack.norm, mesh)
    for first in range(0, number, width):
        batch = batch_of(first + lanes)
        look = program(classifier, *batch)
        if not first:
            logits, again = jax.device_get((look.logits, program(classifier, *batch).logits))
            # The first image beside each of the others that are looked at again.
            beside = program(classifier, *batch_of(np.where(lanes % 2, 0, lanes))).logits
            moved = _difference(jax.device_get(beside)[::2], logits[::2])
        seen.append(jax.device_get(look[1:]))
    zero, non_finite, probabilities, reached, falls = (
        np.concatenate(parts)[:number] for parts in zip(*seen, strict=True)
    )
    aimed = attack.targeted or attack.targets > 0
    return Diagnostics(
        loss=None if loss is None else losses.in_force(loss, logits.shape[1], aimed),
        asked_loss=loss,
        zero_gradient=float(np.mean(zero)),
        non_finite=float(np.mean(non_finite)),
        probabilities=bool(probabilities.all()),
        at_target=float(np.mean(reached)) if attack.targeted else 0.0,
        unrepeatable=_difference(again, logits),
        batch_dependent=moved / max(_difference(logits, 0), 1e-30),
        weaker=falls,
        diverged=0,
        outside=0,
        unconfirmed=0,
    )


def _difference(found: np.ndarray, expected: np.ndarray | float) -> float:
    """The largest of those numbers that are finite; 0 where none are."""
    with np.errstate(invalid="ignore"):  # inf - inf
        apart = np.abs(found - expected)
    return float(np.max(apart, initial=0.0, where=np.isfinite(apart)))


def _is_traceable(program, *args) -> bool:
    """Whether all of it can be differentiated: a callback cannot, nor a `while_loop`."""
    try:
        program.eval_shape(*args)
    except Exception:  # whatever JAX says of that; a network that has other faults shows them later
        return False
    return True


@functools.cache
def _program(loss: str | None, norm: str, mesh: Mesh) -> Callable[..., Any]:
    """The compiled look; None: without gradients. Cached: attacks alike in both share it."""
    one, lane = PartitionSpec(), PartitionSpec("data")

    def look(classifier, images, goals, eps) -> Look:
        def objective(images):
            logits = classifier(images)
            return jnp.sum(jax.vmap(losses.LOSSES[loss])(logits, goals)), logits

        grads, logits = jax.grad(objective, has_aux=True)(images)
        steps = jax.vmap(norms.get(norm).maximizer)(grads, images, eps)
        ahead = classifier(jnp.clip(images + steps, 0, 1))
        falls = goals.reached(ahead) & jnp.isfinite(ahead).all(axis=1)
        reached = goals.reached(logits)
        inside = tuple(range(1, images.ndim))
        finite = jnp.isfinite(grads).all(axis=inside) & jnp.isfinite(logits).all(axis=1)
        return Look(
            logits=logits,
            zero=jnp.all(grads == 0, axis=inside),
            non_finite=~finite,
            probabilities=_are_probabilities(logits),
            reached=reached,
            falls=falls & ~reached,
        )

    def look_at_outputs(classifier, images, goals, eps) -> Look:
        logits = classifier(images)
        never = jnp.zeros(len(logits), bool)
        non_finite = ~jnp.isfinite(logits).all(axis=1)
        reached = goals.reached(logits)
        return Look(logits, never, non_finite, _are_probabilities(logits), reached, never)

    return jax.jit(
        jax.shard_map(
            canonical(look_at_outputs if loss is None else look),
            mesh=mesh,
            in_specs=(one, lane, lane, lane),
            out_specs=lane,
            check_vma=False,
        )
    )


def _are_probabilities(logits: jax.Array) -> jax.Array:
    """`[B]`; those of a network in half precision, which they show, add up to 1 less exactly."""
    shares, inexact = (logits >= 0) & (logits <= 1), 1e-4
    for half in map(jnp.finfo, (jnp.float16, jnp.bfloat16)):
        short = jax.lax.reduce_precision(logits, half.nexp, half.nmant)
        inexact = jnp.where((logits == short).all(axis=1), 2 * float(half.eps), inexact)
    return shares.all(axis=1) & (jnp.abs(logits.sum(axis=1) - 1) < inexact)
