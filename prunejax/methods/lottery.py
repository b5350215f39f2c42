"""Lottery tickets: what is left after each round starts again from its early weights."""

import dataclasses
from typing import ClassVar

import optax

from prunejax import checks
from prunejax.methods.iterative import Iterative
from prunejax.training.phase import Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lottery(Iterative):
    """Iterative pruning with rewinding (Frankle & Carbin 2019; Frankle et al. 2020).

    The dense network is trained for `rewind_epochs`, which ends at the weights w_k, and for
    `epochs` more. Each round then prunes by the trained weights, goes back to w_k for what is
    left, and trains it for `epochs`. What else the network has of epoch k, such as batch
    statistics, comes back with w_k. The learning rate goes back too: one schedule spans
    `rewind_epochs` and `epochs`, and what starts from w_k starts there. The optimiser's moments
    start from zero.

    Attributes:
      rewind_epochs: epochs before the weights that are gone back to; 0 for the initial ones.
    """

    adversarial: bool = False
    rewind_epochs: int = 0

    rewinds: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        checks.integer("rewind_epochs", self.rewind_epochs, least=0)

    def phases(self, steps_per_epoch: int) -> tuple[Phase, ...]:
        """The dense network first, then one phase a round."""

        def dense(name, epochs, tx, **options):
            return Phase(
                name=name,
                epochs=epochs,
                objective=self.cross_entropy(adversarial=self.adversarial),
                optimizer=lambda _: tx,
                selectable_from=None,
                **options,
            )

        rounds = super().phases(steps_per_epoch)
        rest = dense("dense", self.epochs, self.retraining(steps_per_epoch), remembers=True)
        if not self.rewind_epochs:
            return (rest, *rounds)
        all_steps = (self.rewind_epochs + self.epochs) * steps_per_epoch
        return (dense("early", self.rewind_epochs, self.tx(all_steps)), rest, *rounds)

    def retraining(self, steps_per_epoch: int) -> optax.GradientTransformation:
        """The optimiser from w_k on."""
        begin = self.rewind_epochs * steps_per_epoch
        return self.tx(begin + self.epochs * steps_per_epoch, begin=begin)
