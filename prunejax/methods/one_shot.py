"""One-shot pruning of a trained network, then adversarial fine-tuning of what is left."""

import dataclasses

from prunejax import masks, pruning
from prunejax.methods.method import PruningMethod
from prunejax.training.evidence import expected
from prunejax.training.phase import Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneShot(PruningMethod):
    """All at once, by global magnitude unless told otherwise (Sehwag et al. 2020, LWM baseline).

    Attributes:
      adversarial: fine-tune on PGD examples instead of clean ones; criteria of the gradient take
        that of the same objective.
      examples: training examples for criteria that look at data.
    """

    allocation: str = "global"
    adversarial: bool = True
    examples: int = 256

    def __post_init__(self):
        super().__post_init__()
        self.require_enough(
            expected(self.examples),
            f"training brings with examples={self.examples}",
            in_optimizer=False,
        )

    def phases(self, steps_per_epoch: int) -> tuple[Phase, ...]:
        """One phase, which prunes at its beginning."""
        objective = self.cross_entropy(adversarial=self.adversarial)
        tx = self.tx(self.epochs * steps_per_epoch)

        def begin(start):
            mask = pruning.prune(
                start.params, self.sparsity, self.pruner(), evidence=start.evidence
            )
            return masks.apply(start.params, mask), (), mask

        return (
            Phase(
                name="finetune",
                epochs=self.epochs,
                objective=objective,
                optimizer=lambda mask: pruning.masked(tx, mask),
                begin=begin,
                examples=self.examples,
                needs_trained=True,
            ),
        )
