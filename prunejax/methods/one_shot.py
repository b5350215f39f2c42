"""One-shot pruning of a trained network, then adversarial fine-tuning of what is left."""

import dataclasses

from prunejax import masks, pruning
from prunejax.methods.method import PruningMethod
from prunejax.training.phase import Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneShot(PruningMethod):
    """All at once, by global magnitude unless told otherwise (Sehwag et al. 2020, LWM baseline).

    Attributes:
      adversarial: fine-tune on PGD examples instead of clean ones.
    """

    allocation: str = "global"
    adversarial: bool = True

    def phases(self, steps_per_epoch: int) -> tuple[Phase, ...]:
        """One phase, which prunes at its beginning."""
        objective = self.cross_entropy(adversarial=self.adversarial)
        tx = self.tx(self.epochs * steps_per_epoch)

        def begin(params, mask, key):
            del mask
            mask = pruning.prune(params, self.sparsity, self.pruner(), key=key)
            return masks.apply(params, mask), (), mask

        return (
            Phase(
                name="finetune",
                epochs=self.epochs,
                objective=objective,
                optimizer=lambda mask: pruning.masked(tx, mask),
                begin=begin,
            ),
        )
