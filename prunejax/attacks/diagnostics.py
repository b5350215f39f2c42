"""Signs that an attack's result says less about a network than it seems to.

They are what AutoAttack checks for (Croce & Hein 2020) and what Carlini et al. (2019), "On
evaluating adversarial robustness", ask for.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prunejax.attacks import losses
from prunejax.attacks.goal import Goal
from prunejax.classifier import Classifier

# Repeated passes of one program agree bit for bit; a network with dropout left on differs by more.
REPEATABLE = 1e-4


class Diagnostics(NamedTuple):
    """What should make one doubt a result; `warnings` says it in sentences.

    Attributes:
      loss: the loss that was used; "margin" where DLR had too few classes; None without a loss.
      asked_loss: the loss that was asked for.
      zero_gradient: share of the inspected clean images where that loss (the margin without one)
        has a gradient of exactly zero, so that no gradient attack can start.
      non_finite: share of the inspected images with a logit or gradient that is not finite.
      probabilities: whether all outputs lie in [0, 1] and add up to 1: logits are needed.
      unrepeatable: largest difference between the logits of two passes of the same images.
      outside: images claimed as successes that lie outside ball or box; they were refused.
      unconfirmed: claimed successes that a fresh forward pass did not confirm; refused as well.
      inspected: clean images, the first of the batch, that the shares refer to.
    """

    loss: str | None
    asked_loss: str | None
    zero_gradient: float
    non_finite: float
    probabilities: bool
    unrepeatable: float
    outside: int
    unconfirmed: int
    inspected: int

    def warnings(self) -> list[str]:
        """One sentence for each reason to doubt."""
        found = []
        if self.loss != self.asked_loss:
            found.append(
                f"loss {self.asked_loss!r} needs more classes than there are; "
                f"{self.loss!r} was used."
            )
        if self.zero_gradient > 0:
            found.append(
                f"{self.zero_gradient:.1%} of the images have a zero gradient: robustness may be "
                "masked, look at a black-box attack and at the margin loss."
            )
        if self.non_finite > 0:
            found.append(
                f"{self.non_finite:.1%} of the images have non-finite logits or gradients."
            )
        if self.probabilities:
            found.append(
                "The outputs look like probabilities; remove the softmax, logits are needed."
            )
        if self.unrepeatable > REPEATABLE:
            found.append(
                f"Logits of repeated passes differ by {self.unrepeatable:.2g}: a randomised "
                "network needs expectation over its randomness."
            )
        if self.outside:
            found.append(
                f"{self.outside} returned images were outside ball or box and were refused."
            )
        if self.unconfirmed:
            found.append(f"{self.unconfirmed} successes were not confirmed and were refused.")
        return found


def inspect(
    classifier: Classifier,
    images: np.ndarray,
    goals: Goal,
    loss: str | None,
    *,
    aimed: bool,
    number: int,
) -> Diagnostics:
    """Looks at the classifier on clean images `[B, ...]`; nothing is outside or unconfirmed yet.

    Args:
      classifier: under attack.
      images: clean ones.
      goals: what is wanted of each.
      loss: the attack's, None if it has none.
      aimed: whether the attack heads for targets.
      number: only the first of the images are counted, the others are padding.
    """
    with_gradient = "margin" if loss in (None, "kl") else loss  # KL has none at the clean image
    first, second = (
        [part[:number] for part in jax.device_get(_look(classifier, images, goals, with_gradient))]
        for _ in range(2)
    )
    logits, zero, non_finite = first
    return Diagnostics(
        loss=None if loss is None else losses.in_force(loss, logits.shape[1], aimed),
        asked_loss=loss,
        zero_gradient=float(np.mean(zero)),
        non_finite=float(np.mean(non_finite)),
        probabilities=bool(
            np.all((logits >= 0) & (logits <= 1)) and np.allclose(logits.sum(axis=1), 1, atol=1e-4)
        ),
        unrepeatable=float(np.nanmax(np.abs(second[0] - logits)))
        if np.isfinite(logits).any()
        else 0.0,
        outside=0,
        unconfirmed=0,
        inspected=number,
    )


@functools.partial(jax.jit, static_argnames="loss")
def _look(classifier, images, goals, loss):
    def objective(images):
        logits = classifier(images)
        return jnp.sum(jax.vmap(losses.LOSSES[loss])(logits, goals)), logits

    grads, logits = jax.grad(objective, has_aux=True)(images)
    inside = tuple(range(1, images.ndim))
    finite = jnp.isfinite(grads).all(axis=inside) & jnp.isfinite(logits).all(axis=1)
    return logits, jnp.all(grads == 0, axis=inside), ~finite
