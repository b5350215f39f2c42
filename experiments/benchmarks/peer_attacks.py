"""The attacks of other libraries, with the settings that correspond to ours.

Each takes a torch network that maps NCHW images to logits, images and labels that it gets right,
and a budget (None for minimum-norm attacks), and returns perturbed images.
"""

import contextlib
import io
import sys
import types
from collections.abc import Callable
from typing import Any

Peer = Callable[[Any, Any, Any, float | None], Any]

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def apgd(norm: str, loss: str | None, larger_budgets: bool = False) -> Peer:
    """APGD of pyautoattack; loss None is APGD-T with 9 targets."""

    def run(network, images, labels, eps):
        from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

        options = {"norm": NORMS[norm], "eps": eps, "seed": 0, "device": "cpu"}
        if loss is None:
            attack = APGDAttack_targeted(network, **options)
        else:
            attack = APGDAttack(network, loss=loss, use_largereps=larger_budgets, **options)
        return _silently(attack.perturb, images, labels)

    return run


def fab_t(norm: str) -> Peer:
    """FAB-T of pyautoattack with 9 targets, the nearest of them."""

    def run(network, images, labels, eps):
        import torch
        from pyautoattack.fab_pt import FABAttack_PT

        attack = FABAttack_PT(
            network, norm=NORMS[norm], n_restarts=1, n_iter=100, eps=1e9, seed=0, device="cpu"
        )
        order = {"linf": float("inf"), "l2": 2, "l1": 1}[norm]
        best, nearest = images.clone(), torch.full((len(images),), float("inf"))
        for target in range(2, 11):
            attack.target_class = target
            found = attack.attack_single_run(images, labels, use_rand_start=False, is_targeted=True)
            distance = (found - images).flatten(1).norm(p=order, dim=1)
            better = (network(found).argmax(1) != labels) & (distance < nearest)
            best[better], nearest[better] = found[better], distance[better]
        return best

    return run


def square(norm: str, queries: int) -> Peer:
    """Square of pyautoattack."""

    def run(network, images, labels, eps):
        from pyautoattack.square import SquareAttack

        attack = SquareAttack(
            network, norm=NORMS[norm], n_queries=queries, eps=eps, p_init=0.8, seed=0,
            device="cpu", resc_schedule=False,
        )  # fmt: skip
        return _silently(attack.perturb, images, labels)

    return run


def autoattack(norm: str) -> Peer:
    """AutoAttack `standard` of pyautoattack."""

    def run(network, images, labels, eps):
        from pyautoattack import AutoAttack

        attack = AutoAttack(
            network, norm=NORMS[norm], eps=eps, version="standard", seed=0, device="cpu"
        )
        return _silently(attack.run_standard_evaluation, images, labels, batch_size=len(images))[0]

    return run


def adv_lib(name: str, **options) -> Peer:
    """The function of that name of adv-lib."""

    def run(network, images, labels, eps):
        _without_torchvision()
        import adv_lib.attacks

        return getattr(adv_lib.attacks, name)(network, images, labels, **options)

    return run


def foolbox(name: str, **options) -> Peer:
    """The class of that name of foolbox."""

    def run(network, images, labels, eps):
        import foolbox

        model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
        attack = getattr(foolbox.attacks, name)(**options)
        return attack(model, images, labels, epsilons=eps)[1]

    return run


def torchattacks(name: str, *, budget: str | None = None, **options) -> Peer:
    """The class of that name of torchattacks; `budget` is what it calls eps."""

    def run(network, images, labels, eps):
        import torchattacks

        given = {} if budget is None else {budget: eps}
        return getattr(torchattacks, name)(network, **given, **options)(images, labels)

    return run


def _silently(function, *args, **options):
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*args, **options)


def _without_torchvision() -> None:
    """adv-lib imports torchvision for what no attack uses."""
    if "torchvision" not in sys.modules:
        package = sys.modules["torchvision"] = types.ModuleType("torchvision")
        for part in ("models", "transforms", "utils"):
            module = types.ModuleType(f"torchvision.{part}")
            sys.modules[module.__name__] = module
            setattr(package, part, module)
