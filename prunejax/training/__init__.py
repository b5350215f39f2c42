"""Training: objectives, adversaries, phases, and the loop that runs them."""

from prunejax.training import adversaries, checkpoints, objectives, optimizers
from prunejax.training.evidence import evidence
from prunejax.training.loop import DivergedError, Trained, check, train
from prunejax.training.phase import Phase, Start

__all__ = [
    "DivergedError",
    "Phase",
    "Start",
    "Trained",
    "adversaries",
    "check",
    "checkpoints",
    "evidence",
    "objectives",
    "optimizers",
    "train",
]
