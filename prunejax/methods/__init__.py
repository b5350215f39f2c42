"""Adversarial pruning methods by name, each a short composition of training and pruning."""

from prunejax import names
from prunejax.methods.alternating import Alternating
from prunejax.methods.blind import Blind
from prunejax.methods.dense import Dense
from prunejax.methods.gradual_adversarial import GradualAdversarial
from prunejax.methods.gradual_natural import GradualNatural
from prunejax.methods.hydra import Hydra
from prunejax.methods.iterative import Iterative
from prunejax.methods.lottery import Lottery
from prunejax.methods.method import Method
from prunejax.methods.one_shot import OneShot
from prunejax.methods.regrowing import Regrowing

METHODS: dict[str, type[Method]] = {
    "dense": Dense,
    "one_shot": OneShot,
    "iterative": Iterative,
    "lottery": Lottery,
    "gradual_natural": GradualNatural,
    "gradual_adversarial": GradualAdversarial,
    "alternating": Alternating,
    "regrowing": Regrowing,
    "blind": Blind,
    "hydra": Hydra,
}


def create(name: str, **options) -> Method:
    """The method called `name` with these hyperparameters; lists become tuples.

    Raises:
      ValueError: an unknown method or hyperparameter, or a value out of range.
    """
    return names.build("method", name, METHODS, options)


__all__ = [
    "METHODS",
    "Alternating",
    "Blind",
    "Dense",
    "GradualAdversarial",
    "GradualNatural",
    "Hydra",
    "Iterative",
    "Lottery",
    "Method",
    "OneShot",
    "Regrowing",
    "create",
]
