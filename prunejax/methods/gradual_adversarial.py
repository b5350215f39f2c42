"""Gradual pruning with adversarial examples of one prescribed budget (Xie et al. 2020, "AT")."""

import dataclasses

from prunejax.methods.method import GradualMethod
from prunejax.training import objectives


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradualAdversarial(GradualMethod):
    """Cubic schedule, half clean and half PGD examples with the same budget for every example."""

    def objective(self) -> objectives.Objective:
        """Mean of clean and adversarial cross-entropy."""
        return objectives.half_half(self.adversary(), self.label_smoothing)
