"""Densities by how much each layer alone suffers: the allocation that configs call "sensitivity".

    --config.method.allocation=sensitivity --config.init_from=runs/dense

Each layer of the network that the run starts from is pruned alone to `config.sensitivity.densities`
and attacked, with the attack, budget and images of `config.validation`. Criteria of data look at
the first training examples, as many as the method shows them; learned scores are not learned yet.
(experiments.shrink does so in each of its rounds, and likewise with groups of channels: `removal`.)
"""

import dataclasses
import pathlib
from collections.abc import Callable

import jax
from ml_collections import config_dict

from experiments import from_config, run_directory
from prunejax import data, evaluation, methods
from prunejax.classifier import Classifier
from prunejax.pruning import learned, sensitivity

ALLOCATION = "sensitivity"
# Training examples for the measurement of methods that show criteria none.
EXAMPLES = 256


def is_asked_for(config: config_dict.ConfigDict) -> bool:
    """Whether the config leaves the densities to a measurement."""
    return config.method.get("allocation") == ALLOCATION


def method_before(config: config_dict.ConfigDict) -> methods.Method:
    """The config's method; the allocation is uniform as long as nothing is measured.

    Raises:
      ValueError: a method that cannot be, or a measurement that cannot be made or used.
    """
    if not is_asked_for(config):
        return methods.create(**config.method.to_dict())
    if not config.init_from:
        raise ValueError(
            "init_from is empty, and method.allocation is 'sensitivity': name the folder of a "
            "trained run (--config.init_from=...) whose layers are measured."
        )
    method = methods.create(**config.method.to_dict() | {"allocation": "uniform"})
    density = 1 - method.target_sparsity
    check_densities(config, density, "method.sparsity")
    # What cannot have a density of its own in each layer is refused now.
    dataclasses.replace(method.pruner(), allocation={"*": density})
    return method


def check_densities(config: config_dict.ConfigDict, density: float, asked_by: str) -> None:
    """Raises a ValueError for `config.sensitivity.densities` that do not reach the density."""
    measured = config.sensitivity.densities
    if not measured or not all(0 < d <= 1 for d in measured) or min(measured) > density:
        raise ValueError(
            f"sensitivity.densities is {tuple(measured)}; some in (0, 1] are needed, the lowest at "
            f"most the density {density:.4g} that {asked_by} asks for."
        )


def method_after(
    config: config_dict.ConfigDict, workdir: pathlib.Path, *args, **kwargs
) -> methods.Method:
    """The config's method with measured densities; takes what `densities` takes."""
    found = densities(config, workdir, *args, **kwargs)
    return methods.create(**config.method.to_dict() | {"allocation": found})


def densities(
    config: config_dict.ConfigDict,
    workdir: pathlib.Path,
    classifier: Classifier,
    train_set: data.Dataset,
    dataset: data.Dataset,
    report: Callable[[int, int], None] = lambda measured, wanted: None,
) -> dict[str, float]:
    """Path -> density; measured once, and kept with the measurements in `sensitivity.json`.

    Args:
      config: of the run.
      workdir: the run's folder.
      classifier: dense, trained.
      train_set: what criteria of data may look at.
      dataset: held out from training and from testing.
      report: called with (accuracies measured, accuracies to measure).

    Raises:
      ValueError: a sparsity that the measured densities do not reach.
    """
    path = workdir / "sensitivity.json"
    if path.exists():
        remedy = "Remove it, and the layers are measured again."
        return run_directory.read_json(path, remedy)["densities"]
    method = method_before(config)
    pruner = method.pruner()
    attack, images, labels = from_config.validation(config, dataset)
    robust_accuracy = evaluation.accuracy_under(
        attack, classifier, images, labels, eps=config.validation.eps, key=jax.random.key(0)
    )
    units = {path: layer.units for path, layer in pruner.layers(classifier.params).items()}
    examples = method.phases(steps_per_epoch=1)[-1].examples or EXAMPLES
    evidence = from_config.evidence(classifier, method, train_set, examples, config.seed)
    table = sensitivity.measure(
        classifier.params,
        pruner,
        config.sensitivity.densities,
        robust_accuracy,
        evidence=evidence._replace(scores=learned.initial(classifier.params)),
        progress=report,
    )
    found = sensitivity.densities(table, units, 1 - method.target_sparsity)
    if jax.process_index() == 0:
        run_directory.write_json(path, {"robust_accuracy": table, "densities": found})
    return found
