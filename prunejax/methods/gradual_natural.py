"""Gradual pruning during natural training (Zhu & Gupta 2018): the arm without adversaries."""

import dataclasses

from prunejax.methods.method import GradualMethod
from prunejax.training import objectives


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradualNatural(GradualMethod):
    """Cubic schedule, cross-entropy of the clean images.

    `norm`, `eps` and PGD's options are checked and not used.
    """

    def objective(self) -> objectives.Objective:
        """Clean cross-entropy."""
        return objectives.natural(self.label_smoothing)
