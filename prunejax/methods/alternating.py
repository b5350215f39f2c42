"""AC/DC: sparse and dense phases of training in turn."""

import dataclasses

from prunejax import pruning
from prunejax.methods.method import PruningMethod
from prunejax.training.phase import Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alternating(PruningMethod):
    """Alternating compressed and decompressed training (Peste et al. 2021).

    Dense for `dense_epochs` at first, then `sparse_epochs` and `dense_epochs` in turn until
    `pruning_epochs`, and sparse from there on. Each sparse phase chooses among all weights.

    Attributes:
      pruning_epochs: epochs from the first step until the mask stays.
      sparse_epochs: of a sparse phase.
      dense_epochs: of a dense phase.
      adversarial: train on PGD examples instead of clean ones.
    """

    allocation: str = "global"
    pruning_epochs: int = 20
    sparse_epochs: int = 3
    dense_epochs: int = 3
    adversarial: bool = True

    def __post_init__(self):
        super().__post_init__()
        self.require_a_criterion_of_weights()
        if not self.dense_epochs <= self.pruning_epochs < self.epochs:
            raise ValueError(
                f"pruning_epochs is {self.pruning_epochs}; it must lie in "
                f"[dense_epochs = {self.dense_epochs}, epochs = {self.epochs})."
            )
        self.sparsities(steps_per_epoch=1)

    def sparsities(self, steps_per_epoch: int) -> pruning.schedules.Schedule:
        """When the mask changes, and to which sparsity."""
        return pruning.alternating(
            self.sparsity,
            begin=self.dense_epochs * steps_per_epoch,
            end=self.pruning_epochs * steps_per_epoch,
            sparse=self.sparse_epochs * steps_per_epoch,
            dense=self.dense_epochs * steps_per_epoch,
        )

    def phases(self, steps_per_epoch: int) -> tuple[Phase, ...]:
        """One phase; networks count as pruned once the mask stays."""
        tx = self.tx(self.epochs * steps_per_epoch)
        schedule = self.sparsities(steps_per_epoch)
        return (
            Phase(
                name="prune",
                epochs=self.epochs,
                objective=self.cross_entropy(adversarial=self.adversarial),
                optimizer=lambda mask: pruning.optimizer(tx, self.pruner(), schedule, nested=False),
                selectable_from=self.pruning_epochs,
            ),
        )
