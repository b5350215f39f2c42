"""Rounds of pruning and retraining, each of which takes the same share of what is left."""

import dataclasses

import optax

from prunejax import checks, masks, pruning
from prunejax.methods.method import PruningMethod
from prunejax.training.evidence import expected
from prunejax.training.phase import Params, Phase, Start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Iterative(PruningMethod):
    """Prune, retrain, prune again (Han et al. 2015).

    After round i of r the sparsity is `1 - (1 - sparsity)^(i / r)`. Merkle et al. (2021) prune so,
    to the compression rates 2, 4, ..., 64: `sparsity=1 - 1/64, rounds=6`, or `rates`.

    Attributes:
      epochs: of retraining, in each round.
      rounds: of pruning.
      rates: compression by these rates one after another, a round each, in place of `sparsity` and
        `rounds`: at least 1 and increasing. Rate c is the sparsity 1 - 1 / c.
      adversarial: train on PGD examples instead of clean ones; criteria of the gradient take that
        of the same objective.
      examples: training examples for criteria that look at data.
    """

    allocation: str = "global"
    rounds: int = 5
    rates: tuple[float, ...] = ()
    adversarial: bool = True
    examples: int = 256

    def __post_init__(self):
        super().__post_init__()
        self.require_enough(
            expected(self.examples),
            f"training brings with examples={self.examples}",
            in_optimizer=False,
        )
        checks.integer("rounds", self.rounds, least=1)
        self.sparsities()

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
                selectable_from=0 if number == len(sparsities) else None,
            )
            for number, sparsity in enumerate(sparsities, start=1)
        )

    def retraining(self, steps_per_epoch: int) -> optax.GradientTransformation:
        """The optimiser of a round."""
        return self.tx(self.epochs * steps_per_epoch)

    def weights(self, start: Start) -> Params:
        """The weights from which a round trains what is left of the network."""
        return start.params

    def _begin(self, start: Start, sparsity: float):
        mask = self.pruned(start, sparsity)
        return masks.apply(self.weights(start), mask), (), mask
