"""How robust a network is: attack protocols, per-example records, and what is read off them."""

from prunejax.evaluation import records
from prunejax.evaluation.robustness import (
    Protocol,
    accuracies,
    at_budget,
    clean_accuracy,
    evaluate,
    is_complete,
    predict,
    robust_accuracy,
)
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
