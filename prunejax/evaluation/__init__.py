"""How robust a network is: attack protocols, per-example records, and what is read off them."""

from prunejax.evaluation import records
from prunejax.evaluation.accuracy import (
    accuracies,
    at_budget,
    clean_accuracy,
    is_complete,
    robust_accuracy,
)
from prunejax.evaluation.protocol import Protocol
from prunejax.evaluation.robustness import evaluate, predict
from prunejax.evaluation.sensitivity import accuracy_under

__all__ = [
    "Protocol",
    "accuracies",
    "accuracy_under",
    "at_budget",
    "clean_accuracy",
    "evaluate",
    "is_complete",
    "predict",
    "records",
    "robust_accuracy",
]
