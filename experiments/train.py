r"""Trains and prunes one network, as a config says.

    python -m experiments.train --config=experiments/configs/digits_blind.py --workdir=runs/blind \
        --config.method.sparsity=0.95

A run that was stopped goes on from its last checkpoint; a finished one is left alone.
"""

import contextlib
import functools
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from absl import flags
from ml_collections import config_dict, config_flags

from experiments import environment, from_config, progress, run_directory, sensitivity
from prunejax import attacks, data, masks, names, shrinking, training
from prunejax.classifier import Classifier, Network
from prunejax.training import batches, checkpoints


def train(
    config: config_dict.ConfigDict,
    workdir: pathlib.Path,
    *,
    fall_back: bool = False,
    report: Callable[[str, int, int], None] = lambda task, done, total: None,
) -> Classifier:
    """The trained classifier of the run in `workdir`; whatever of the run is missing is made.

    Args:
      config: as the files of configs/ make it.
      workdir: the run's folder.
      fall_back: go on from an earlier checkpoint where the newest is damaged or missing.
      report: called with (task, done, in all), in steps or examples.

    Raises:
      ValueError: a config that cannot be run; before anything is compiled or written.
    """
    from_config.check_ranges(config)
    from_config.check_table("method.allocation", config.method.get("allocation"))
    method = sensitivity.method_before(config)
    from_config.protocols(config)  # what cannot be evaluated later is refused now
    train_set, validation_set = (
        from_config.load_split(config, "train", report),
        from_config.load_split(config, "validation", report),
    )
    network = from_config.build_network(config, train_set)
    steps = len(batches.epoch_indices(len(train_set), config.batch_size, config.seed, epoch=0))
    phases = method.phases(steps)
    if phases[0].needs_trained and not config.init_from:
        raise ValueError(
            f"init_from is empty, and method {config.method.name!r} begins by pruning: name the "
            "folder of a run that trained the network (--config.init_from=...)."
        )
    mesh = from_config.mesh(config)
    validate = _validation(
        config, validation_set, functools.partial(report, f"validate {workdir.name}")
    )
    select = _selection(config)
    start = _start(config, network, train_set)
    training.check(network, start, phases, train_set)
    run_directory.check_run(workdir, config)  # by all processes, or some would wait for one
    is_first = jax.process_index() == 0
    if is_first:
        run_directory.open_run(workdir, config)
    if (workdir / "network").exists():
        return from_config.load_trained(config, workdir, train_set)[0]
    if sensitivity.is_asked_for(config):
        phases = sensitivity.method_after(
            config,
            workdir,
            Classifier(start.variables, network),
            train_set,
            validation_set,
            functools.partial(report, f"measure {workdir.name}"),
        ).phases(steps)

    store = checkpoints.Store(workdir / "checkpoints", fall_back=fall_back)
    with (
        contextlib.closing(store),
        contextlib.closing(run_directory.Metrics(workdir)) as metrics,
    ):
        trained = training.train(
            network,
            start,
            phases,
            train_set,
            batch_size=config.batch_size,
            seed=config.seed,
            shift=config.dataset.shift,
            flip=config.dataset.flip,
            validate=validate,
            select=select,
            store=store,
            checkpoint_every=config.checkpoint_every,
            log=metrics.write if is_first else lambda row: None,
            progress=functools.partial(report, f"train {workdir.name}"),
            mesh=mesh,
        )
    report(f"save {workdir.name}", 0, 1)
    checkpoints.save_network(workdir / "network", trained.variables, trained.mask)
    report(f"save {workdir.name}", 1, 1)
    return Classifier(trained.variables, network)


def _start(config, network: Network, dataset: data.Dataset) -> training.Trained:
    if config.init_from:
        before = pathlib.Path(config.init_from)
        classifier, mask = from_config.load_trained(
            run_directory.read_config(before), before, dataset
        )
        if isinstance(classifier.apply_fn, shrinking.Shrunk):
            raise ValueError(
                f"init_from is {config.init_from!r}, a run whose network was made smaller; only "
                "experiments.shrink goes on with such a one."
            )
        from_config.require_network(config, classifier.apply_fn, dataset)
        return training.Trained(classifier.variables, mask)
    variables = network.init(jax.random.key(config.seed), dataset.image_shape)
    return training.Trained(variables, masks.dense(variables["params"]))


def _validation(
    config, dataset: data.Dataset, progress: Callable[[int, int], None]
) -> Callable[[Classifier], dict[str, float]]:
    """Clean and robust accuracy on held-out images, never those of the test split."""
    attack, images, labels = from_config.validation(config, dataset)

    def validate(classifier: Classifier) -> dict[str, float]:
        progress(0, len(images))  # while it is compiled
        result = attacks.run(
            attack,
            classifier,
            images,
            labels,
            eps=config.validation.eps,
            key=jax.random.key(0),
            progress=progress,
        )
        return {
            "validation_accuracy": float(np.mean(result.distance > 0)),
            "validation_robust_accuracy": float(np.mean(~result.success)),
        }

    return validate


def _selection(config) -> str:
    valid = ("validation_accuracy", "validation_robust_accuracy")
    if config.validation.select not in valid:
        raise names.unknown("validation.select", config.validation.select, valid)
    return config.validation.select


def main() -> None:
    """Runs the command."""
    with progress.bars() as report:
        train(
            flags.FLAGS.config,
            pathlib.Path(flags.FLAGS.workdir),
            fall_back=flags.FLAGS.fall_back,
            report=report,
        )


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, environment.CONFIG_HELP)
    flags.DEFINE_string("workdir", None, "The run's folder; made where it does not exist.")
    flags.DEFINE_bool(
        "fall_back",
        False,
        "Where the newest checkpoint is damaged or missing, go on from the one before it.",
    )
    flags.adopt_module_key_flags(environment)
    flags.mark_flags_as_required(["config", "workdir"])
    environment.run(main)
