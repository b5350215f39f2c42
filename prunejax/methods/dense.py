"""No pruning: the dense network that pruned ones come from and are compared with."""

import dataclasses

from prunejax.methods.method import Method
from prunejax.training.phase import Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dense(Method):
    """Natural or adversarial training.

    Attributes:
      adversarial: train on PGD examples (Madry et al. 2018) instead of clean ones.
    """

    adversarial: bool = True

    def phases(self, steps_per_epoch: int) -> tuple[Phase, ...]:
        """One phase."""
        objective = self.cross_entropy(adversarial=self.adversarial)
        tx = self.tx(self.epochs * steps_per_epoch)
        return (
            Phase(name="train", epochs=self.epochs, objective=objective, optimizer=lambda _: tx),
        )
