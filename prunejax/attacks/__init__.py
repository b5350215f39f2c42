"""Adversarial attacks, compiled, in every norm.

attack = attacks.PGD(norm="linf", steps=40, restarts=2)
result = attacks.run(attack, classifier, images, labels, eps=0.1, key=jax.random.key(0))
robust_accuracy = 1 - result.success.mean()
"""

from prunejax import names
from prunejax.attacks.attack import Attack, Found, Passes
from prunejax.attacks.deepfool import DeepFool, DeepFoolState
from prunejax.attacks.diagnostics import Diagnostics
from prunejax.attacks.fab import FAB, FABState
from prunejax.attacks.fgsm import FGSM, FGSMState
from prunejax.attacks.goal import Goal
from prunejax.attacks.losses import LOSSES
from prunejax.attacks.pgd import PGD, PGDState
from prunejax.attacks.runner import AttackResult, run
from prunejax.attacks.sigma_zero import SigmaZero, SigmaZeroState

ATTACKS: dict[str, type[Attack]] = {
    "fgsm": FGSM,
    "pgd": PGD,
    "deepfool": DeepFool,
    "fab": FAB,
    "sigma_zero": SigmaZero,
}


def create(name: str, **options) -> Attack:
    """The attack called `name` with these hyperparameters, such as `norm` or `steps`.

    Raises:
      ValueError: an unknown attack or hyperparameter, or a value out of range.
    """
    return names.build("attack", name, ATTACKS, options)


__all__ = [
    "ATTACKS",
    "FAB",
    "FGSM",
    "LOSSES",
    "PGD",
    "Attack",
    "AttackResult",
    "DeepFool",
    "DeepFoolState",
    "Diagnostics",
    "FABState",
    "FGSMState",
    "Found",
    "Goal",
    "PGDState",
    "Passes",
    "SigmaZero",
    "SigmaZeroState",
    "create",
    "run",
]
