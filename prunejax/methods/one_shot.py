"""Pruning before training: of a trained network, which is fine-tuned then, or of a fresh one."""

import dataclasses

from prunejax import checks, masks, pruning
from prunejax.methods.method import ByCriterion
from prunejax.training.phase import Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneShot(ByCriterion):
    """All at once, by global magnitude unless told otherwise (Sehwag et al. 2020, LWM baseline).

    At initialisation: SNIP (Lee et al. 2019), GraSP (Wang et al. 2020) and SynFlow (Tanaka et al.
    2020, `rounds=100`, `examples=0`) by the criteria of these names.

    Attributes:
      at_initialisation: begin with a fresh network instead of a trained one.
      rounds: prune in so many before any training, each of which scores anew what is left.
      adversarial: fine-tune on PGD examples instead of clean ones.
    """

    allocation: str = "global"
    at_initialisation: bool = False
    rounds: int = 1
    adversarial: bool = True

    def __post_init__(self):
        super().__post_init__()
        checks.integer("rounds", self.rounds, least=1)

    def phases(self, steps_per_epoch: int) -> tuple[Phase, ...]:
        """One phase, which prunes at its beginning."""
        objective = self.cross_entropy(adversarial=self.adversarial)
        tx = self.tx(self.epochs * steps_per_epoch)

        def begin(start):
            mask = self.pruned(start, self.sparsity, self.rounds)
            return masks.apply(start.params, mask), (), mask

        return (
            Phase(
                name="finetune",
                epochs=self.epochs,
                objective=objective,
                optimizer=lambda mask: pruning.masked(tx, mask),
                begin=begin,
                examples=self.examples,
                needs_trained=not self.at_initialisation,
            ),
        )
