"""Sparse from the first step on, with connections that move (RigL, SET)."""

import dataclasses
import functools
from typing import ClassVar

from prunejax import masks, pruning
from prunejax.methods.method import ByCriterion
from prunejax.pruning import regrowth
from prunejax.training.evidence import expected, with_evidence
from prunejax.training.phase import Mask, Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regrowing(ByCriterion):
    """Drops the worst weights now and then and grows as many others: `pruning.regrowing`.

    With the defaults RigL (Evci et al. 2020), with `grow="random"` and `final_drop=drop` SET
    (Mocanu et al. 2018).

    Attributes:
      regrowing_epochs: epochs from the first step until the mask stays.
      mask_frequency: steps between two changes of the mask.
      drop: share of a layer's weights that is dropped at first.
      final_drop: the same at the end.
      grow: "gradient" or "random".
      adversarial: train on PGD examples instead of clean ones; "gradient" is that of the same
        objective, whatever `examples`.
    """

    allocation: str = "erk"
    regrowing_epochs: int = 22
    mask_frequency: int = 100
    drop: float = 0.3
    final_drop: float = 0.0
    grow: str = "gradient"
    adversarial: bool = True

    in_optimizer: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.regrowing_epochs <= self.epochs:
            raise ValueError(
                f"regrowing_epochs is {self.regrowing_epochs}; "
                f"it must lie in [1, epochs = {self.epochs}]."
            )
        self._optimizer(1, None, expected(self.examples))

    def _optimizer(self, steps_per_epoch: int, mask: Mask, known: pruning.Evidence):
        return pruning.regrowing(
            self.tx(self.epochs * steps_per_epoch),
            self.pruner(),
            self.sparsity,
            end=self.regrowing_epochs * steps_per_epoch,
            frequency=self.mask_frequency,
            drop=self.drop,
            final_drop=self.final_drop,
            grow=self.grow,
            mask=mask,
            evidence=known,
        )

    def phases(self, steps_per_epoch: int) -> tuple[Phase, ...]:
        """One phase, at the target sparsity throughout."""

        def begin(start):
            mask = regrowth.at_random(
                start.params, self.pruner(), self.sparsity, start.evidence.key
            )
            return masks.apply(start.params, mask), (), mask

        def optimizer(mask):
            make = functools.partial(self._optimizer, steps_per_epoch, mask)
            return with_evidence(make, self.examples)

        return (
            Phase(
                name="train",
                epochs=self.epochs,
                objective=self.cross_entropy(adversarial=self.adversarial),
                begin=begin,
                optimizer=optimizer,
                examples=self.examples,
            ),
        )
