"""The library's objects as a config describes them."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import config_dict

from prunejax import attacks, data, models, names
from prunejax.classifier import Classifier, Network
from prunejax.evaluation import Protocol
from prunejax.training import checkpoints


def load_split(config: config_dict.ConfigDict, split: str) -> data.Dataset:
    """A split of the config's data set."""
    return data.load(config.dataset.name, split, data_dir=config.dataset.data_dir or None)


def build_network(config: config_dict.ConfigDict, dataset: data.Dataset) -> Network:
    """The architecture that the config describes, for the classes of the data set."""
    module = models.create(config.model.name, dataset.num_classes, **config.model.options.to_dict())
    mean, std = (
        tuple(value) if isinstance(value, list | tuple) else value
        for value in (config.model.mean, config.model.std)
    )
    return Network(module, mean, std)


def load_trained(
    config: config_dict.ConfigDict, workdir: pathlib.Path, dataset: data.Dataset
) -> tuple[Classifier, Any]:
    """The classifier of a finished run, and its mask; any split of its data set will do."""
    network = build_network(config, dataset)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), dataset.image_shape))
    variables, mask = checkpoints.load_network(workdir / "network", shapes)
    return Classifier(variables, network), mask


def protocols(
    config: config_dict.ConfigDict, chosen: Sequence[str] | None = None
) -> list[Protocol]:
    """The config's evaluation protocols, or those of them that are named.

    Raises:
      ValueError: an unknown protocol or attack, or options that the attack does not take.
    """
    known = config.evaluation.protocols
    for name in chosen or ():
        if name not in known:
            raise names.unknown("protocol of evaluation", name, known)
    return [
        Protocol(
            name=name,
            attack=attacks.create(known[name].attack, **known[name].options),
            budgets=tuple(known[name].budgets),
            stated=known[name].stated,
        )
        for name in (chosen or known)
    ]
