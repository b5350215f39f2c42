"""What `throughput` times of its peers: the same steps on the same weights, by torch."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmarks import timing, torch_networks
from experiments.benchmarks.throughput_ours import (
    ATTACK_STEPS,
    EPS,
    LEARNING_RATE,
    MOMENTUM,
    TRAINING_BATCH,
    Case,
    attacked_images,
    training_set,
)
from prunejax.classifier import Classifier


def attack_candidates(case: Case, classifier: Classifier) -> list[timing.Candidate]:
    """PGD by torch alone, foolbox and torchattacks, in torch's faster layout."""
    import foolbox
    import torch
    import torchattacks

    images, labels = attacked_images(case, classifier)
    network = (
        torch_networks.network_of(case.network, classifier.variables).eval().requires_grad_(False)
    )
    _check_same(classifier, network, images)
    labels = torch.tensor(labels, dtype=torch.long)
    step_size = EPS * 2.5 / ATTACK_STEPS
    network, images = min(
        _torch_formats(network, images),
        key=lambda pair: _seconds_of(lambda: _torch_pgd(*pair, labels, step_size)),
    )

    lib_foolbox = foolbox.attacks.LinfPGD(abs_stepsize=step_size, steps=ATTACK_STEPS)
    model_foolbox = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    lib_torchattacks = torchattacks.PGD(network, eps=EPS, alpha=step_size, steps=ATTACK_STEPS)
    calls = {
        "torch": lambda: _torch_pgd(network, images, labels, step_size),
        "foolbox": lambda: lib_foolbox(model_foolbox, images, labels, epsilons=EPS),
        "torchattacks": lambda: lib_torchattacks(images, labels),
    }
    work = len(images) * ATTACK_STEPS
    return [timing.Candidate(name, work, call) for name, call in calls.items()]


def _torch_pgd(network, images, labels, step_size: float):
    """The loop that everyone writes."""
    import torch

    x = (images + torch.empty_like(images).uniform_(-EPS, EPS)).clamp(0, 1)
    for _ in range(ATTACK_STEPS):
        x.requires_grad_()
        loss = torch.nn.functional.cross_entropy(network(x), labels, reduction="sum")
        (grad,) = torch.autograd.grad(loss, x)
        x = x.detach() + step_size * grad.sign()
        x = (images + (x - images).clamp(-EPS, EPS)).clamp(0, 1)
    return x


def training_candidate(case: Case, classifier: Classifier) -> timing.Candidate:
    """Natural training by torch, in its faster layout."""
    import torch

    dataset = training_set(case)
    labels = torch.from_numpy(dataset.labels).long().split(TRAINING_BATCH)

    def epoch_of(network, images):
        optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, MOMENTUM)
        parts = list(zip(images.split(TRAINING_BATCH), labels, strict=True))

        def epoch():
            for batch, label in parts:
                optimizer.zero_grad()
                logits = network(batch.float() / 255)
                torch.nn.functional.cross_entropy(logits, label).backward()
                optimizer.step()

        return epoch

    network = torch_networks.network_of(case.network, classifier.variables).train()
    epochs = [epoch_of(*pair) for pair in _torch_formats(network, dataset.images)]
    return timing.Candidate("torch", len(dataset), min(epochs, key=_seconds_of))


def _seconds_of(call: Callable[[], object]) -> float:
    call()
    return min(timing.elapsed(call) for _ in range(3))


def _torch_formats(network, images: np.ndarray) -> list[tuple[Any, Any]]:
    """The network and its images, channels first and channels last."""
    import torch

    images = torch.from_numpy(images).permute(0, 3, 1, 2)
    formats = (torch.contiguous_format, torch.channels_last)
    return [
        (copy.deepcopy(network).to(memory_format=layout), images.contiguous(memory_format=layout))
        for layout in formats
    ]


def _check_same(classifier: Classifier, network, images: np.ndarray) -> None:
    import torch

    with torch.no_grad():
        theirs = network(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    difference = np.abs(np.asarray(classifier(images)) - theirs).max()
    if not difference < 1e-4:
        raise RuntimeError(f"the logits of the network in torch differ by {difference}")
