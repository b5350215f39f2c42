"""Prune networks without losing their adversarial robustness, and find out whether it was lost."""

from prunejax import attacks, classifier, masks, models, norms, pruning, trees
from prunejax.classifier import Classifier, Network
from prunejax.version import VERSION

__version__ = VERSION

__all__ = [
    "Classifier",
    "Network",
    "attacks",
    "classifier",
    "masks",
    "models",
    "norms",
    "pruning",
    "trees",
]
