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

import numpy as np

from experiments.benchmarks import torch_networks
from prunejax.classifier import Classifier

Peer = Callable[[Any, Any, Any, float | None], Any]

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def network_of(model: str, classifier: Classifier, images: np.ndarray):
    """The classifier as a torch module of NCHW images in [0, 1], its normalisation inside.

    Raises:
      ValueError: its logits of these images `[B, H, W, C]` are not those of the classifier.
    """
    import torch

    class Normalise(torch.nn.Module):
        def forward(self, x):
            return (x - mean) / std

    network = torch_networks.network_of(model, classifier.variables)
    mean, std = (
        torch.tensor(np.float32(getattr(classifier.apply_fn, name, default))).reshape(-1, 1, 1)
        for name, default in (("mean", 0.0), ("std", 1.0))
    )
    if mean.any() or (std != 1).any():
        network = torch.nn.Sequential(Normalise(), network)
    network = network.eval().requires_grad_(False)
    theirs, ours = network(nchw(images)).numpy(), np.asarray(classifier(images))
    worst = np.max(np.abs(theirs - ours)) / np.max(np.abs(ours))
    if not worst < 1e-3:
        raise ValueError(
            f"model is {model!r}; its torch module's logits differ by {worst:.2g} of the largest, "
            "so the peers would attack another network."
        )
    return network


def nchw(images: np.ndarray):
    """Images `[B, H, W, C]` as a torch tensor, channels first."""
    import torch

    return torch.from_numpy(np.asarray(images, np.float32)).permute(0, 3, 1, 2).contiguous()


def perturb(peer: Peer, network, images: np.ndarray, labels: np.ndarray, eps: float | None):
    """What the peer makes of images `[B, H, W, C]`, from the same seed every time."""
    import torch

    torch.manual_seed(0)
    np.random.seed(0)  # foolbox and torchattacks draw from numpy's own too
    found = peer(network, nchw(images), torch.from_numpy(np.asarray(labels)).long(), eps)
    return found.detach().permute(0, 2, 3, 1).numpy()


def apgd(norm: str, loss: str, larger_budgets: bool = False) -> Peer:
    """APGD of pyautoattack with loss "ce" or "dlr", from one start."""

    def run(network, images, labels, eps):
        from pyautoattack.autopgd_base import APGDAttack

        attack = APGDAttack(
            network, norm=NORMS[norm], loss=loss, eps=eps, use_largereps=larger_budgets, seed=0,
            device="cpu",
        )  # fmt: skip
        return _silently(attack.perturb, images, labels)

    return run


def apgd_t(norm: str, targets: int, larger_budgets: bool = False) -> Peer:
    """APGD-T of pyautoattack."""

    def run(network, images, labels, eps):
        from pyautoattack.autopgd_base import APGDAttack_targeted

        attack = APGDAttack_targeted(
            network, norm=NORMS[norm], n_target_classes=targets, eps=eps,
            use_largereps=larger_budgets, seed=0, device="cpu",
        )  # fmt: skip
        return _silently(attack.perturb, images, labels)

    return run


def fab(norm: str) -> Peer:
    """FAB of pyautoattack, away from the label."""

    def run(network, images, labels, eps):
        from pyautoattack.fab_pt import FABAttack_PT

        attack = FABAttack_PT(
            network, norm=NORMS[norm], n_restarts=1, n_iter=100, eps=1e9, seed=0, device="cpu"
        )
        return attack.attack_single_run(images, labels, use_rand_start=False)

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


def autoattack(norm: str, version: str = "standard") -> Peer:
    """AutoAttack of pyautoattack; "rand" with one draw a step, for the networks draw nothing."""

    def run(network, images, labels, eps):
        from pyautoattack import AutoAttack

        attack = AutoAttack(
            network, norm=NORMS[norm], eps=eps, version=version, seed=0, device="cpu"
        )
        attack.apgd.eot_iter = 1
        return _silently(attack.run_standard_evaluation, images, labels, batch_size=len(images))[0]

    return run


def adv_lib(name: str, **options) -> Peer:
    """The function of that name of adv-lib."""

    def run(network, images, labels, eps):
        _without_torchvision()
        import adv_lib.attacks

        return getattr(adv_lib.attacks, name)(network, images, labels, **options)

    return run


def foolbox(name: str, *, starts: bool = False, **options) -> Peer:
    """The class of that name of foolbox.

    With `starts` it begins at another of the images, drawn at random among those of other classes
    (foolbox's `DatasetAttack`): of its own choice, uniform noise, foolbox raises an error for the
    whole batch where the noise has the label of one of them.
    """

    def run(network, images, labels, eps):
        import foolbox

        model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
        given = dict(options)
        if starts:
            given["init_attack"] = foolbox.attacks.DatasetAttack()
            given["init_attack"].feed(model, images)
        attack = getattr(foolbox.attacks, name)(**given)
        return attack(model, images, labels, epsilons=eps)[1]

    return run


def brendel_bethge(norm: str, steps: int) -> Peer:
    """Brendel & Bethge's of foolbox, which needs numba.

    In L0 foolbox counts moves beyond 1e-4; smaller ones are undone where that costs nothing.
    """
    prefix = {"linf": "Linfinity", "l2": "L2", "l1": "L1", "l0": "L0"}[norm]
    attack = foolbox(f"{prefix}BrendelBethgeAttack", starts=True, steps=steps)

    def run(network, images, labels, eps):
        import torch

        found = attack(network, images, labels, eps)
        if norm != "l0":
            return found
        snapped = torch.where((found - images).abs() > 1e-4, found, images)
        still = network(snapped).argmax(1) != labels
        return torch.where(still[:, None, None, None], snapped, found)

    return run


def torchattacks(name: str, *, eps: bool = False, **options) -> Peer:
    """The class of that name of torchattacks, which gets the budget where `eps`."""

    def run(network, images, labels, budget):
        import torchattacks

        given = {"eps": budget} if eps else {}
        return getattr(torchattacks, name)(network, **given, **options)(images, labels)

    return run


def jsma(steps: int) -> Peer:
    """JSMA of torchattacks with so many pairs, towards the likeliest class but the label."""

    def run(network, images, labels, eps):
        import torchattacks

        def likeliest(images, labels):
            return network(images).scatter(1, labels[:, None], -float("inf")).argmax(1)

        # It makes ceil(d gamma / 2) of d features.
        attack = torchattacks.JSMA(network, gamma=(2 * steps - 0.5) / images[0].numel())
        attack.set_mode_targeted_by_function(likeliest, quiet=True)
        return attack(images, labels)

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
