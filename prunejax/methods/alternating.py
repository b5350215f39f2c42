"""AC/DC: sparse and dense phases of training in turn."""

import dataclasses
from typing import ClassVar

from prunejax import pruning
from prunejax.methods.method import DuringTraining
from prunejax.training import objectives


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alternating(DuringTraining):
    """Alternating compressed and decompressed training (Peste et al. 2021).

    Dense for `dense_epochs` at first, then `sparse_epochs` and `dense_epochs` in turn until
    `pruning_epochs`, and sparse from there on. Each sparse phase chooses among all weights.

    Attributes:
      sparse_epochs: of a sparse phase.
      dense_epochs: of a dense phase.
      adversarial: train on PGD examples instead of clean ones.
    """

    allocation: str = "global"
    pruning_epochs: int = 20
    sparse_epochs: int = 3
    dense_epochs: int = 3
    adversarial: bool = True

    nested: ClassVar[bool] = False

    def __post_init__(self):
        if not self.dense_epochs <= self.pruning_epochs < self.epochs:
            raise ValueError(
                f"pruning_epochs is {self.pruning_epochs}; it must lie in "
                f"[dense_epochs = {self.dense_epochs}, epochs = {self.epochs})."
            )
        super().__post_init__()

    def objective(self) -> objectives.Objective:
        """Cross-entropy, of adversarial images where training is on them."""
        return self.cross_entropy(adversarial=self.adversarial)

    def sparsities(self, steps_per_epoch: int) -> pruning.schedules.Schedule:
        """When the mask changes, and to which sparsity."""
        return pruning.alternating(
            self.sparsity,
            begin=self.dense_epochs * steps_per_epoch,
            end=self.pruning_epochs * steps_per_epoch,
            sparse=self.sparse_epochs * steps_per_epoch,
            dense=self.dense_epochs * steps_per_epoch,
        )
