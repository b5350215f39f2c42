"""The library's objects as a config describes them."""

import functools
import math
import operator
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import config_dict

from experiments import run_directory
from prunejax import attacks, data, methods, models, names, pruning, shrinking, training
from prunejax.classifier import Classifier, Network
from prunejax.evaluation import Protocol
from prunejax.training import batches, checkpoints

# Beside a network that was made smaller: what was removed from the one of the config.
STRUCTURE = "structure.json"

# The least that a number of the config may be, where nothing else looks at it in time.
LEAST = {
    "seed": 0,
    "checkpoint_every": 1,
    "dataset.shift": 0,
    "validation.eps": 0,
    "validation.examples": 1,
    "evaluation.examples": 1,
    "evaluation.batch_size": 1,
}


def check_ranges(config: config_dict.ConfigDict, least: Mapping[str, float] = LEAST) -> None:
    """Looks at numbers that would be used only after hours of training.

    Args:
      config: the config.
      least: the least that each of its numbers may be, by key.

    Raises:
      ValueError: one of them is out of range.
    """
    for key, smallest in least.items():
        value = functools.reduce(operator.getitem, key.split("."), config)
        if not value >= smallest:
            raise ValueError(f"{key} is {value}; it must be at least {smallest}.")


def check_table(key: str, allocation: Any) -> None:
    """Looks at what may be a table of densities by path pattern, of which the first match counts.

    Args:
      key: of the config.
      allocation: its value.

    Raises:
      ValueError: a dict, whose order a config does not keep.
    """
    if hasattr(allocation, "items"):
        raise ValueError(
            f"{key} is a dict, of which a config does not keep the order; write pairs, those that "
            f"are to be tried first in front, such as {tuple(allocation.items())}."
        )


def load_split(
    config: config_dict.ConfigDict,
    split: str,
    report: Callable[[str, int, int], None] = lambda task, done, total: None,
) -> data.Dataset:
    """A split of the config's data set; `report` is called with (task, examples read, in all)."""
    return data.load(
        config.dataset.name,
        split,
        data_dir=config.dataset.data_dir or None,
        image_size=config.dataset.get("image_size"),  # older runs have none
        progress=functools.partial(report, f"read {config.dataset.name} {split}"),
    )


def build_network(config: config_dict.ConfigDict, dataset: data.Dataset) -> Network:
    """The architecture that the config describes, for the classes of the data set."""
    module = models.create(config.model.name, dataset.num_classes, **config.model.options.to_dict())
    mean, std = (
        tuple(value) if isinstance(value, list | tuple) else value
        for value in (config.model.mean, config.model.std)
    )
    return Network(module, mean, std)


def require_network(config: config_dict.ConfigDict, found: Any, dataset: data.Dataset) -> None:
    """Looks at the network of the run that `init_from` names.

    Raises:
      ValueError: it is not the one that the config describes, so that nobody could load the result.
    """
    network = build_network(config, dataset)
    if found != network:
        raise ValueError(
            f"init_from is {config.init_from!r}, a run of {found}; "
            f"this config's model is {network}."
        )


def mesh(config: config_dict.ConfigDict) -> jax.sharding.Mesh:
    """As many devices as divide the batch; all of them where they are of several processes.

    Raises:
      ValueError: several processes, some of which would be left without a device.
    """
    batch_size, devices = config.batch_size, jax.devices()
    shared = math.gcd(batch_size, len(devices))
    if jax.process_count() > 1 and shared < len(devices):
        raise ValueError(
            f"batch_size is {batch_size}; with several processes it must be a multiple of all "
            f"their {len(devices)} devices."
        )
    return batches.data_mesh(devices[:shared])


def load_trained(
    config: config_dict.ConfigDict, workdir: pathlib.Path, dataset: data.Dataset
) -> tuple[Classifier, Any]:
    """The classifier of a finished run, and its mask; any split of its data set will do."""
    network = build_network(config, dataset)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), dataset.image_shape))
    if (workdir / STRUCTURE).exists():
        return load_shrunk(workdir, Classifier(shapes, network), dataset.image_shape)
    variables, mask = checkpoints.load_network(workdir / "network", shapes)
    return Classifier(variables, network), mask


def validation(
    config: config_dict.ConfigDict, dataset: data.Dataset
) -> tuple[attacks.Attack, np.ndarray, np.ndarray]:
    """By what robustness is validated: PGD, and of the first held-out examples images and labels.

    Args:
      config: of the run.
      dataset: held out from training and from testing.

    Returns:
      The attack, images `[N, H, W, C]` float32 in [0, 1], labels `[N]`.

    Raises:
      ValueError: an unknown norm, or less than a step.
    """
    settings = config.validation
    attack = attacks.create("pgd", norm=settings.norm, steps=settings.steps)
    dataset = dataset.take(min(settings.examples, len(dataset)))
    return attack, dataset.images.astype(np.float32) / 255, dataset.labels


def evidence(
    classifier: Classifier,
    method: methods.Method,
    dataset: data.Dataset,
    examples: int,
    seed: int,
) -> pruning.Evidence:
    """The first examples, at most so many, and the method's own objective, adversarial if it is."""
    dataset = dataset.take(min(examples, len(dataset)))
    return training.evidence(
        classifier.apply_fn,
        classifier.variables,
        method.phases(steps_per_epoch=1)[-1].objective,
        jax.numpy.asarray(dataset.images),
        jax.numpy.asarray(dataset.labels),
        jax.random.key(seed),
    )


def save_shrunk(folder: pathlib.Path, classifier: Classifier, mask: Any) -> None:
    """Writes a network of `shrinking`: what is left of variables and mask, and what was removed."""
    checkpoints.save_network(folder / "network", classifier.variables, mask)
    run_directory.write_json(folder / STRUCTURE, shrinking.describe(classifier.apply_fn))


def load_shrunk(
    folder: pathlib.Path, whole: Classifier, image_shape: tuple[int, ...]
) -> tuple[Classifier, Any]:
    """What `save_shrunk` wrote, given the whole network (shapes instead of variables will do)."""
    description = run_directory.read_json(
        folder / STRUCTURE, "Remove the run's folder, and experiments.shrink makes it again."
    )
    network = shrinking.from_description(whole.apply_fn, whole.variables, description)
    shapes = network.left(jax.ShapeDtypeStruct((2, *image_shape), jax.numpy.float32))
    variables, mask = checkpoints.load_network(folder / "network", shapes)
    return Classifier(variables, network), mask


def protocols(
    config: config_dict.ConfigDict, chosen: Sequence[str] | None = None
) -> list[Protocol]:
    """The config's evaluation protocols; those of them that are chosen, unless that is None.

    Raises:
      ValueError: an unknown protocol or attack, or options that the attack does not take.
    """
    known = config.evaluation.protocols
    chosen = known.keys() if chosen is None else chosen
    for name in chosen:
        if name not in known:
            raise names.unknown("protocol of evaluation", name, known)
    return [
        Protocol(
            name=name,
            attack=attacks.create(known[name].attack, **known[name].options),
            budgets=tuple(known[name].budgets),
            stated=known[name].stated,
        )
        for name in chosen
    ]
