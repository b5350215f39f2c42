"""Signs that an attack's result says less about a network than it seems to.

They are what AutoAttack checks for (Croce & Hein 2020) and what Carlini et al. (2019), "On
evaluating adversarial robustness", ask for.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

# Repeated passes of one program agree bit for bit; a network with dropout left on differs by more.
REPEATABLE = 1e-4
# An image at another place of the batch is rounded otherwise.
ALIKE = 1e-3


class Doubt(NamedTuple):
    """A reason to doubt a result, or a count that is 0 and none.

    Attributes:
      kind: what it is about; doubts of one kind differ in what follows only.
      sentence: that says it, with "{number}" and "{among}" in their places.
      number: how many examples or attempts it is about, or by how much something differs.
      among: of how many examples they were counted; 0 where none are.
      member: of an ensemble, that it is about; "" for a whole.
      budget: of the run that it is about, where there are several.
    """

    kind: str
    sentence: str
    number: float = 0
    among: int = 0
    member: str = ""
    budget: float | None = None

    @property
    def holds(self) -> bool:
        """Whether there is something to doubt."""
        return self.number > 0 or not self.among

    @property
    def said(self) -> str:
        """The sentence with its numbers and the name of the member."""
        sentence = self.sentence.format(number=self.number, among=self.among)
        return f"{self.member}: {sentence}" if self.member else sentence


def added(doubts: Iterable[Doubt]) -> list[Doubt]:
    """One of each kind, member and budget, of runs on different examples: what was counted adds up.

    Of what was measured the largest remains.
    """
    found: dict[Any, Doubt] = {}
    for new in doubts:
        same = new.kind, new.member, new.budget
        old = found.get(same, new._replace(number=0, among=0))
        number = old.number + new.number if new.among else max(old.number, new.number)
        found[same] = new._replace(number=number, among=old.among + new.among)
    return list(found.values())


def sentences(doubts: Iterable[Doubt]) -> list[str]:
    """What holds, once for each kind and member: that of the largest number, as they first came."""
    found: dict[Any, Doubt] = {}
    for doubt in filter(lambda doubt: doubt.holds, doubts):
        same = doubt.kind, doubt.member
        found[same] = max(found.get(same, doubt), doubt, key=lambda doubt: doubt.number)
    return [doubt.said for doubt in found.values()]


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
      diverged: attempts that ended in NaN, in the attack's state or in the logits of what it found
        or of its last iterate, or there in a logit of plus infinity.
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
        return sentences(self.doubts())

    def doubts(self) -> list[Doubt]:
        """The reasons to doubt, each of another kind, and the counts that are 0."""
        found, size = [], self.weaker.size

        def measured(kind, sentence, number=0.0):
            found.append(Doubt(kind, sentence, number))

        def counted(kind, sentence, number):
            found.append(Doubt(kind, sentence, int(number), size))

        if self.loss != self.asked_loss:
            measured(
                "loss",
                f"loss {self.asked_loss!r} needs more classes than there are; "
                f"{self.loss!r} was used.",
            )
        counted(
            "zero_gradient",
            "{number} of {among} images have a zero gradient: robustness may be masked, look at a "
            "black-box attack and at the margin loss.",
            round(self.zero_gradient * size),
        )
        counted(
            "non_finite",
            "{number} of {among} images have non-finite logits or gradients.",
            round(self.non_finite * size),
        )
        if self.probabilities:
            measured(
                "probabilities",
                "The outputs look like probabilities; remove the softmax, logits are needed.",
            )
        counted(
            "at_target",
            "{number} of {among} images are classified as the class to reach already: labels of a "
            "targeted attack are that class, not the true one.",
            round(self.at_target * size) if self.at_target > 0.5 else 0,
        )
        if self.unrepeatable > REPEATABLE:
            measured(
                "unrepeatable",
                "Logits of repeated passes differ by {number:.2g}: a randomised network needs "
                "expectation over its randomness.",
                self.unrepeatable,
            )
        elif self.batch_dependent > ALIKE:
            measured(
                "batch_dependent",
                "Logits of an image differ by {number:.2g} of the largest beside other images: use "
                "the network in evaluation mode, or results depend on the batch.",
                self.batch_dependent,
            )
        counted(
            "weaker",
            "{number} of {among} examples fell to a single step along the gradient but not to this "
            "attack, which is weaker there: it has too few steps or too large ones, or the "
            "gradients are masked.",
            self.weaker.sum(),
        )
        counted(
            "diverged",
            "{number} attempts ended in NaN or infinity: near some images the network is not "
            "finite, and examples may count as robust only because the attack got lost there.",
            self.diverged,
        )
        counted(
            "outside",
            "{number} returned images were outside ball or box and were refused.",
            self.outside,
        )
        counted(
            "unconfirmed",
            "{number} successes were not confirmed and were refused.",
            self.unconfirmed,
        )
        return found
