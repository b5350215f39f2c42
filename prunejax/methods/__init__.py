"""Adversarial pruning methods by name, each a short composition of training and pruning."""

from prunejax import names
from prunejax.methods.blind import Blind
from prunejax.methods.dense import Dense
from prunejax.methods.gradual_adversarial import GradualAdversarial
from prunejax.methods.gradual_natural import GradualNatural
from prunejax.methods.method import Method
from prunejax.methods.one_shot import OneShot

METHODS: dict[str, type[Method]] = {
    "dense": Dense,
    "one_shot": OneShot,
    "gradual_natural": GradualNatural,
    "gradual_adversarial": GradualAdversarial,
    "blind": Blind,
}


def create(name: str, **options) -> Method:
    """The method called `name` with these hyperparameters; lists become tuples.

    Raises:
      ValueError: an unknown method or hyperparameter, or a value out of range.
    """
    return names.build("method", name, METHODS, options)


__all__ = [
    "METHODS",
    "Blind",
    "Dense",
    "GradualAdversarial",
    "GradualNatural",
    "Method",
    "OneShot",
    "create",
]
