"""HYDRA: the weights stay, and scores learn by the same objective which of them to keep."""

import dataclasses

import jax
import jax.numpy as jnp

from prunejax import checks, pruning, trees
from prunejax.methods.method import PruningMethod
from prunejax.pruning import learned
from prunejax.training.phase import Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hydra(PruningMethod):
    """Learned scores with a straight-through mask, then fine-tuning (Sehwag et al. 2020).

    From a trained network with weights w, `min_s L(w m(s))` over the scores s of its weights, where
    m(s) keeps those of largest |s|; then the weights that m(s) keeps are trained. What is never
    pruned, such as batch normalisation, is trained in both phases. The paper learns scores for 20
    epochs at a rate of 0.1 and fine-tunes for 100 at 0.01, with SGD, on TRADES; here on the
    cross-entropy.

    Attributes:
      epochs: of fine-tuning.
      score_epochs: of learning the scores.
      score_learning_rate: at the start of that; None is `learning_rate`.
      criterion: "learned"; no other has scores to learn.
      adversarial: both phases train on PGD examples instead of clean ones.
    """

    criterion: str = "learned"
    score_epochs: int = 20
    score_learning_rate: float | None = None
    adversarial: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.criterion != "learned":
            raise ValueError(
                f"criterion is {self.criterion!r}; this method learns its scores: leave it "
                "'learned', or take another method."
            )
        checks.integer("score_epochs", self.score_epochs, least=1)
        self.tx(1, self.score_learning_rate)

    def phases(self, steps_per_epoch: int) -> tuple[Phase, ...]:
        """Scores, then weights; networks of the second phase count as pruned."""
        objective = self.cross_entropy(adversarial=self.adversarial)
        score_tx = self.tx(self.score_epochs * steps_per_epoch, self.score_learning_rate)
        tx = self.tx(self.epochs * steps_per_epoch)
        return (
            Phase(
                name="scores",
                epochs=self.score_epochs,
                objective=objective,
                optimizer=lambda _: score_tx,
                begin=self._begin,
                needs_trained=True,
                materialize=self._effective,
                mask=lambda trainable, weights, _: self._mask(trainable, weights),
                selectable_from=None,
            ),
            Phase(
                name="finetune",
                epochs=self.epochs,
                objective=objective,
                optimizer=lambda mask: pruning.masked(tx, mask),
            ),
        )

    def _begin(self, start):
        """Trained are the scores of what may be pruned and the other parameters themselves."""
        weights, scored = start.params, self.pruner().paths(start.params)
        scores = trees.flatten(learned.initial(weights))
        trainable = trees.map_with_path(
            lambda path, leaf: scores[path] if path in scored else leaf, weights
        )
        return trainable, weights, self._mask(trainable, weights)

    def _mask(self, trainable, weights):
        return pruning.prune(
            weights, self.sparsity, self.pruner(), evidence=pruning.Evidence(scores=trainable)
        )

    def _effective(self, trainable, weights):
        mask = self._mask(trainable, weights)
        pruned = learned.effective(weights, trainable, mask)
        return jax.tree.map(
            lambda keep, leaf, other: leaf if jnp.ndim(keep) else other, mask, pruned, trainable
        )
