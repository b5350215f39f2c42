"""Signs that an attack's result says less about a network than it seems to.

They are what AutoAttack checks for (Croce & Hein 2020) and what Carlini et al. (2019), "On
evaluating adversarial robustness", ask for.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

# Repeated passes of one program agree bit for bit; a network with dropout left on differs by more.
REPEATABLE = 1e-4
# An image at another place of the batch is rounded otherwise.
ALIKE = 1e-3


class Doubt(NamedTuple):
    """A reason to doubt a result.

    Attributes:
      kind: the same in doubts whose sentences differ in their numbers alone.
      sentence: that says it.
      number: how many examples it is about, or by how much something differs.
    """

    kind: str
    sentence: str
    number: float = 0

    def by(self, member: str) -> "Doubt":
        """The same, said by a member of an ensemble."""
        return Doubt(f"{member}: {self.kind}", f"{member}: {self.sentence}", self.number)


def strongest(doubts: Iterable[Doubt]) -> list[Doubt]:
    """One doubt of each kind, that of the largest number, in the order in which they first came."""
    found: dict[str, Doubt] = {}
    for doubt in doubts:
        if doubt.kind not in found or doubt.number > found[doubt.kind].number:
            found[doubt.kind] = doubt
    return list(found.values())


class Diagnostics(NamedTuple):
    """What should make one doubt a result; `warnings` says it in sentences.

    Attributes:
      loss: the loss that was used; "margin" where DLR had too few classes; None without a loss.
      asked_loss: the loss that was asked for.
      zero_gradient: share of the clean images where that loss (the margin without one) has a
        gradient of exactly zero, so that no gradient attack can start.
      non_finite: share of the clean images with a logit or gradient that is not finite.
      probabilities: whether all outputs lie in [0, 1] and add up to 1: logits are needed.
      at_target: share of the clean images that are classified as the class which a targeted attack
        is to reach; 0 for untargeted ones.
      unrepeatable: largest difference between the logits of two passes of the same images, the
        first of them.
      batch_dependent: largest difference between the logits of an image beside some and beside
        other images, as a share of the largest logit.
      weaker: `[N]` whether one step finds for an example what the attack did not: the maximum of
        the loss, linearised at the clean image, over the same ball and the box (FGSM). For
        minimum-norm attacks, which have no ball, a corner of the box, where they found nothing.
      diverged: attempts that ended in NaN: in the attack's state, or in the logits of what it found
        or of its last iterate.
      outside: images claimed as successes that lie outside ball or box; they were refused.
      unconfirmed: claimed successes that a fresh forward pass did not confirm; refused as well. In
        minimum-norm attacks only those that are not confirmed a thousandth farther away either.
    """

    loss: str | None
    asked_loss: str | None
    zero_gradient: float
    non_finite: float
    probabilities: bool
    at_target: float
    unrepeatable: float
    batch_dependent: float
    weaker: np.ndarray
    diverged: int
    outside: int
    unconfirmed: int

    def warnings(self) -> list[str]:
        """One sentence for each reason to doubt."""
        return [doubt.sentence for doubt in self.doubts()]

    def doubts(self) -> list[Doubt]:
        """The reasons to doubt, each of another kind."""
        found, size = [], self.weaker.size

        def doubt(kind, sentence, number=0):
            found.append(Doubt(kind, sentence, number))

        zero, non_finite, at_target = (
            round(share * size) for share in (self.zero_gradient, self.non_finite, self.at_target)
        )
        if self.loss != self.asked_loss:
            doubt(
                "loss",
                f"loss {self.asked_loss!r} needs more classes than there are; "
                f"{self.loss!r} was used.",
            )
        if zero:
            doubt(
                "zero_gradient",
                f"{zero} of {size} images have a zero gradient: robustness may be masked, look "
                "at a black-box attack and at the margin loss.",
                zero,
            )
        if non_finite:
            doubt(
                "non_finite",
                f"{non_finite} of {size} images have non-finite logits or gradients.",
                non_finite,
            )
        if self.probabilities:
            doubt(
                "probabilities",
                "The outputs look like probabilities; remove the softmax, logits are needed.",
            )
        if self.at_target > 0.5:
            doubt(
                "at_target",
                f"{at_target} of {size} images are classified as the class to reach already: "
                "labels of a targeted attack are that class, not the true one.",
                at_target,
            )
        if self.unrepeatable > REPEATABLE:
            doubt(
                "unrepeatable",
                f"Logits of repeated passes differ by {self.unrepeatable:.2g}: a randomised "
                "network needs expectation over its randomness.",
                self.unrepeatable,
            )
        elif self.batch_dependent > ALIKE:
            doubt(
                "batch_dependent",
                f"Logits of an image differ by {self.batch_dependent:.2g} of the largest beside "
                "other images: use the network in evaluation mode, or results depend on the batch.",
                self.batch_dependent,
            )
        if weaker := int(self.weaker.sum()):
            doubt(
                "weaker",
                f"{weaker} of {size} examples fell to a single step along the gradient but not "
                "to this attack, which is weaker there: it has too few steps or too large ones, or "
                "the gradients are masked.",
                weaker,
            )
        if self.diverged:
            doubt(
                "diverged",
                f"{self.diverged} attempts ended in NaN: near some images the network is not "
                "finite, and examples may count as robust only because the attack got lost there.",
                self.diverged,
            )
        if self.outside:
            doubt(
                "outside",
                f"{self.outside} returned images were outside ball or box and were refused.",
                self.outside,
            )
        if self.unconfirmed:
            doubt(
                "unconfirmed",
                f"{self.unconfirmed} successes were not confirmed and were refused.",
                self.unconfirmed,
            )
        return found
