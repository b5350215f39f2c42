"""Rounds of pruning and retraining, each of which takes the same share of what is left."""

import dataclasses
from typing import ClassVar

import optax

from prunejax import checks, masks, pruning
from prunejax.methods.method import ByCriterion
from prunejax.training.phase import Phase, Start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Iterative(ByCriterion):
    """Prune, retrain, prune again (Han et al. 2015).

    After round i of r the sparsity is `1 - (1 - sparsity)^(i / r)`. Merkle et al. (2021) prune so,
    to the compression rates 2, 4, ..., 64: `sparsity=1 - 1/64, rounds=6`, or `rates`.

    Attributes:
      epochs: of retraining, in each round.
      rounds: of pruning.
      rates: compression by these rates one after another, a round each, in place of `sparsity` and
        `rounds`: at least 1 and increasing. Rate c is the sparsity 1 - 1 / c.
      adversarial: train on PGD examples instead of clean ones.

    Raises:
      ValueError: rates or a number of rounds out of range, or a last sparsity that N:M cannot have.
    """

    allocation: str = "global"
    rounds: int = 5
    rates: tuple[float, ...] = ()
    adversarial: bool = True

    # Whether a round starts from the remembered network instead of the trained one.
    rewinds: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        checks.integer("rounds", self.rounds, least=1)
        units = pruning.granularity.create(self.granularity)
        units.require_sparsity(self.target_sparsity, on_the_way=False)

    def sparsities(self) -> list[float]:
        """After each round."""
        if self.rates:
            schedule = pruning.iterative(self.rates, frequency=1)
        else:
            schedule = pruning.constant_rate(self.sparsity, end=self.rounds - 1, frequency=1)
        return [sparsity for _, sparsity in schedule]

    @property
    def target_sparsity(self) -> float:
        """That of the last round."""
        return self.sparsities()[-1]

    def phases(self, steps_per_epoch: int) -> tuple[Phase, ...]:
        """One phase a round; networks of the last one count as pruned."""
        objective = self.cross_entropy(adversarial=self.adversarial)
        tx = self.retraining(steps_per_epoch)
        sparsities = self.sparsities()
        return tuple(
            Phase(
                name=f"round {number}",
                epochs=self.epochs,
                objective=objective,
                optimizer=lambda mask: pruning.masked(tx, mask),
                begin=lambda start, sparsity=sparsity: self._begin(start, sparsity),
                examples=self.examples,
                needs_trained=True,
                rewinds=self.rewinds,
                selectable_from=0 if number == len(sparsities) else None,
            )
            for number, sparsity in enumerate(sparsities, start=1)
        )

    def retraining(self, steps_per_epoch: int) -> optax.GradientTransformation:
        """The optimiser of a round."""
        return self.tx(self.epochs * steps_per_epoch)

    def _begin(self, start: Start, sparsity: float):
        mask = self.pruned(start, sparsity)
        params = start.remembered["params"] if self.rewinds else start.params
        return masks.apply(params, mask), (), mask
