"""Blind adversarial pruning (Xie et al. 2020): budgets are estimated, not prescribed."""

import dataclasses

from prunejax.methods.method import GradualMethod
from prunejax.training import adversaries, objectives


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blind(GradualMethod):
    """Cubic schedule, half clean and half DeepFool examples after cutoff and scale.

    `norm`, `eps` and PGD's options are checked and not used. See `adversaries.blind` for what is
    known of the paper's cutoff and scale.

    Attributes:
      deepfool_steps: DeepFool steps an example.
      candidates: classes that DeepFool considers.
      cutoff: largest root-mean-square perturbation; None for the batch's mean.
      scale: factor after the cutoff.
    """

    label_smoothing: float = 0.1
    deepfool_steps: int = 5
    candidates: int = 9
    cutoff: float | None = None
    scale: float = 0.9

    def __post_init__(self):
        super().__post_init__()
        self.objective()

    def objective(self) -> objectives.Objective:
        """Mean of clean and adversarial cross-entropy."""
        adversary = adversaries.blind(
            steps=self.deepfool_steps,
            cutoff=self.cutoff,
            scale=self.scale,
            candidates=self.candidates,
        )
        return objectives.half_half(adversary, self.label_smoothing)
