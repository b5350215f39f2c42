"""Training: objectives, adversaries, phases, and the loop that runs them."""

from prunejax.training import adversaries, checkpoints, objectives, optimizers
from prunejax.training.loop import DivergedError, Trained, check, train
from prunejax.training.phase import Phase

__all__ = [
    "DivergedError",
    "Phase",
    "Trained",
    "adversaries",
    "check",
    "checkpoints",
    "objectives",
    "optimizers",
    "train",
]
