"""Adversarial attacks, compiled, in every norm.

attack = attacks.PGD(norm="linf", steps=40, restarts=2)
result = attacks.run(attack, classifier, images, labels, eps=0.1, key=jax.random.key(0))
robust_accuracy = 1 - result.success.mean()
"""

from collections.abc import Callable

from prunejax import names
from prunejax.attacks.apgd import APGD, APGDState
from prunejax.attacks.apgd_l1 import APGDL1, APGDL1State
from prunejax.attacks.attack import Attack, Found, Passes, as_attacked
from prunejax.attacks.autoattack import autoattack, l0_ensemble
from prunejax.attacks.bisection import BisectionResult, smallest_budget
from prunejax.attacks.brendel_bethge import BrendelBethge, BrendelBethgeState
from prunejax.attacks.carlini_wagner import CarliniWagner, CarliniWagnerState
from prunejax.attacks.cascade import Cascade, CascadeResult, run
from prunejax.attacks.curve import CurveResult, robust_accuracies
from prunejax.attacks.ddn import DDN, DDNState
from prunejax.attacks.deepfool import DeepFool, DeepFoolState
from prunejax.attacks.diagnostics import Diagnostics
from prunejax.attacks.expectation import expectation
from prunejax.attacks.fab import FAB, FABState
from prunejax.attacks.fgsm import FGSM, FGSMState
from prunejax.attacks.fmn import FMN, FMNState
from prunejax.attacks.goal import Goal
from prunejax.attacks.hopskipjump import HopSkipJump, HopSkipJumpState
from prunejax.attacks.jsma import JSMA, JSMAState
from prunejax.attacks.losses import LOSSES
from prunejax.attacks.one_pixel import OnePixel, OnePixelState
from prunejax.attacks.pdpgd import PDPGD, PDPGDState
from prunejax.attacks.pgd import PGD, PGDState
from prunejax.attacks.random_search import RandomSearchState
from prunejax.attacks.runner import AttackResult
from prunejax.attacks.sigma_zero import SigmaZero, SigmaZeroState
from prunejax.attacks.sparse_rs import SparseRS
from prunejax.attacks.square import Square

ATTACKS: dict[str, type[Attack]] = {
    "fgsm": FGSM,
    "pgd": PGD,
    "apgd": APGD,
    "apgd_l1": APGDL1,
    "deepfool": DeepFool,
    "fab": FAB,
    "fmn": FMN,
    "ddn": DDN,
    "carlini_wagner": CarliniWagner,
    "pdpgd": PDPGD,
    "jsma": JSMA,
    "one_pixel": OnePixel,
    "sigma_zero": SigmaZero,
    "square": Square,
    "sparse_rs": SparseRS,
    "brendel_bethge": BrendelBethge,
    "hopskipjump": HopSkipJump,
}


ENSEMBLES: dict[str, Callable[..., Cascade]] = {
    "autoattack": autoattack,
    "l0_ensemble": l0_ensemble,
}


def create(name: str, **options) -> Attack | Cascade:
    """The attack or ensemble called `name` with these options, such as `norm` or `steps`.

    Raises:
      ValueError: an unknown attack or option, or a value out of range.
    """
    return names.build("attack", name, ATTACKS | ENSEMBLES, options)


__all__ = [
    "APGD",
    "APGDL1",
    "ATTACKS",
    "DDN",
    "ENSEMBLES",
    "FAB",
    "FGSM",
    "FMN",
    "JSMA",
    "LOSSES",
    "PDPGD",
    "PGD",
    "APGDL1State",
    "APGDState",
    "Attack",
    "AttackResult",
    "BisectionResult",
    "BrendelBethge",
    "BrendelBethgeState",
    "CarliniWagner",
    "CarliniWagnerState",
    "Cascade",
    "CascadeResult",
    "CurveResult",
    "DDNState",
    "DeepFool",
    "DeepFoolState",
    "Diagnostics",
    "FABState",
    "FGSMState",
    "FMNState",
    "Found",
    "Goal",
    "HopSkipJump",
    "HopSkipJumpState",
    "JSMAState",
    "OnePixel",
    "OnePixelState",
    "PDPGDState",
    "PGDState",
    "Passes",
    "RandomSearchState",
    "SigmaZero",
    "SigmaZeroState",
    "SparseRS",
    "Square",
    "as_attacked",
    "autoattack",
    "create",
    "expectation",
    "l0_ensemble",
    "robust_accuracies",
    "run",
    "smallest_budget",
]
