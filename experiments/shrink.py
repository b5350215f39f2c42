r"""Makes a trained network smaller: removes channels or residual blocks, fine-tunes, and again.

    python -m experiments.shrink --config=experiments/configs/digits_shrink.py \
        --workdir=runs/small --config.init_from=runs/dense

Each round is kept in the run's folder; a run that was stopped goes on after its last round, and a
finished one is left alone. The result is evaluated like any other (experiments.evaluate). It is the
network's equations on smaller arrays, for networks of `models` too: this command alone goes on with
it, experiments.train does not (`shrinking.shrink` keeps the module's class). What pruned the
network before stays: of its mask each round keeps what belongs to the channels that are left. Where
that mask removes whole channels (config.method.granularity = "filter", say), they are gone after

    python -m experiments.shrink --config=experiments/configs/digits_shrink.py \
        --workdir=runs/small --config.init_from=runs/pruned --config.shrinking.remove=masked
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import config_dict, config_flags
from rich.console import Console
from rich.table import Table

from experiments import environment, from_config, progress, removal, run_directory, sensitivity
from prunejax import checks, data, evaluation, masks, methods, names, pruning, shrinking, training
from prunejax.classifier import Classifier
from prunejax.evaluation import efficiency, predict
from prunejax.training import batches

COSTS = ("flops", "parameters", "latency")
# As `from_config.LEAST`.
LEAST = {
    "shrinking.blocks": 1,
    "shrinking.multiple": 1,
    "shrinking.examples": 0,
    "shrinking.batch_size": 1,
}


def shrink(
    config: config_dict.ConfigDict,
    workdir: pathlib.Path,
    *,
    report: Callable[[str, int, int], None] = lambda task, done, total: None,
) -> list[dict[str, Any]]:
    """The rounds of the run in `workdir`, from round 0, the network that it starts from.

    Args:
      config: with `init_from`, the folder of a finished run, and the keys of `config.shrinking`.
      workdir: the run's folder.
      report: called with (task, done, in all), in steps, images or batches.

    Returns:
      For each round what the network costs and how many validation images it gets right.

    Raises:
      ValueError: a config that cannot be run, before anything is written; a later round in which
        nothing is left to remove.
    """
    method = _checked(config)
    run_directory.check_run(workdir, config)
    rows = _rows(workdir)
    if (workdir / from_config.STRUCTURE).exists():
        return rows  # finished; to measure its latency again might ask for another round
    train_set, validation_set = (
        from_config.load_split(config, split, report) for split in ("train", "validation")
    )
    first, now = _start(config, train_set)
    settings, mesh = config.shrinking, from_config.mesh(config)
    steps = len(batches.epoch_indices(len(train_set), config.batch_size, config.seed, epoch=0))
    measured = functools.partial(_row, validation_set, settings.batch_size, report)

    def evidence_of(classifier: Classifier) -> pruning.Evidence:
        return from_config.evidence(classifier, method, train_set, settings.examples, config.seed)

    def accuracy_of(classifier: Classifier) -> Callable[[Any], float]:
        attack, images, labels = from_config.validation(config, validation_set)
        return evaluation.accuracy_under(
            attack, classifier, images, labels, eps=config.validation.eps, key=jax.random.key(0)
        )

    views = removal.Views(
        evidence_of,
        accuracy_of,
        config.sensitivity.densities,
        functools.partial(report, "measure channels"),
    )

    def remove(now: removal.Stage) -> removal.Stage:
        report(f"choose {settings.remove}", 0, 1)
        smaller = removal.remove(now, settings, train_set.image_shape, views)
        report(f"choose {settings.remove}", 1, 1)
        return smaller

    def phases(mask: Any, method: methods.Method = method) -> list[training.Phase]:
        return [_under(mask, phase) for phase in method.phases(steps)]

    def method_of(number: int, classifier: Classifier) -> methods.Method:
        if not sensitivity.is_asked_for(config):
            return method
        progress = functools.partial(report, f"measure round {number}")
        sets = (train_set, validation_set)
        return sensitivity.method_after(config, folder_of(number), classifier, *sets, progress)

    def folder_of(number: int) -> pathlib.Path:
        return workdir / "rounds" / str(number)

    def finetune(now: removal.Stage, number: int) -> removal.Stage:
        network = now.classifier.apply_fn
        trained = training.train(
            network,
            training.Trained(now.classifier.variables, now.mask),
            phases(now.mask, method_of(number, now.classifier)),
            train_set,
            batch_size=config.batch_size,
            seed=config.seed + number,
            shift=config.dataset.shift,
            flip=config.dataset.flip,
            progress=lambda done, total: report(f"round {number}", done, total),
            mesh=mesh,
        )
        classifier = Classifier(trained.variables, network)
        return removal.Stage(classifier, trained.mask, measured(number, classifier))

    chosen = []
    if not rows:  # the first round shows what cannot be done, before anything is written
        smaller = remove(now)
        begun = training.Trained(smaller.classifier.variables, smaller.mask)
        training.check(smaller.classifier.apply_fn, begun, phases(smaller.mask), train_set)
        chosen, rows = [smaller], [measured(0, first)]
    in_one_round = settings.remove == "masked"
    at_most = 0 if in_one_round else _target(settings, rows[0])
    run_directory.open_run(workdir, config)
    run_directory.write_json(workdir / "rounds.json", rows)
    if len(rows) > 1:
        folder = folder_of(len(rows) - 1)
        now = removal.Stage(*from_config.load_shrunk(folder, first, train_set.image_shape))
    rounds = shrinking.iterate(
        now._replace(row=rows[-1]),
        remove=lambda now: chosen.pop() if chosen else remove(now),
        finetune=finetune,
        cost=lambda now: now.row[settings.target],
        at_most=at_most,
        first_round=len(rows),
    )
    for number, now, _ in itertools.islice(rounds, 2 - len(rows) if in_one_round else None):
        from_config.save_shrunk(folder_of(number), now.classifier, now.mask)
        rows.append(now.row)
        run_directory.write_json(workdir / "rounds.json", rows)
    from_config.save_shrunk(workdir, now.classifier, now.mask)
    return rows


def _checked(config: config_dict.ConfigDict) -> methods.Method:
    """The config's method; raises a ValueError for what is wrong with the config by itself."""
    if "shrinking" not in config:
        raise ValueError(
            "config has no key `shrinking`; take experiments/configs/digits_shrink.py, or set "
            "config.shrinking = shrinking(...), which is in experiments/configs/base.py."
        )
    from_config.check_ranges(config, {**from_config.LEAST, **LEAST})
    settings = config.shrinking
    for key in ("share", "at_most"):
        checks.number(f"shrinking.{key}", settings[key], within="(0, 1)")
    for key in ("method", "shrinking"):
        from_config.check_table(f"{key}.allocation", config[key].get("allocation"))
    if settings.allocation == sensitivity.ALLOCATION:
        sensitivity.check_densities(config, 1 - settings.share, "shrinking.share")
    if settings.budget is not None:
        checks.number("shrinking.budget", settings.budget, within="(0, inf)")
    names.lookup("shrinking.target", settings.target, dict.fromkeys(COSTS))
    names.lookup("shrinking.remove", settings.remove, removal.REMOVE)
    removal.pruner(settings)
    from_config.protocols(config)  # what cannot be evaluated later is refused now
    if not config.init_from:
        raise ValueError("init_from is empty; name the folder of the run to make smaller.")
    return sensitivity.method_before(config)


def _target(settings: config_dict.ConfigDict, first: Mapping[str, Any]) -> float:
    """What the last network may cost, given what the first one does.

    Raises:
      ValueError: the first one costs no more than that.
    """
    cost = first[settings.target]
    if settings.budget is None:
        return settings.at_most * cost
    if cost <= settings.budget:
        raise ValueError(
            f"shrinking.budget is {settings.budget:g} {settings.target}; the network of init_from "
            f"costs {cost:g} already."
        )
    return settings.budget


def _start(config, dataset: data.Dataset) -> tuple[Classifier, removal.Stage]:
    """The network of `init_from`, as it is and as rounds take it."""
    folder = pathlib.Path(config.init_from)
    before = run_directory.read_config(folder)
    first, mask = from_config.load_trained(before, folder, dataset)
    whole = shrinking.whole(first.apply_fn, first.variables)
    from_config.require_network(config, whole.network, dataset)
    return first, removal.Stage(Classifier(first.variables, whole), mask)


def _under(mask: Any, phase: training.Phase) -> training.Phase:
    """The phase, and whatever its method revives outside the mask is zero again after each step."""

    def update(trainable, auxiliary, step):
        trainable, auxiliary = phase.update(trainable, auxiliary, step)
        return masks.apply(trainable, mask), auxiliary

    return dataclasses.replace(
        phase, update=update, mask=lambda *state: masks.intersect(phase.mask(*state), mask)
    )


def _row(held_out: data.Dataset, batch_size: int, report, number: int, classifier: Classifier):
    images = held_out.images.astype(np.float32) / 255
    predictions = predict(classifier, images, progress=functools.partial(report, "validate"))
    return {
        "round": number,
        "validation_accuracy": float(np.mean(predictions == held_out.labels)),
        **costs(classifier, held_out.image_shape, batch_size, report),
    }


def costs(
    classifier: Classifier,
    image_shape: tuple[int, ...],
    batch_size: int,
    report: Callable[[str, int, int], None] = lambda task, done, total: None,
) -> dict[str, float]:
    """Parameters, FLOPs of one image; seconds and bytes of memory for a batch."""
    found = efficiency.efficiency(
        classifier,
        image_shape,
        batch_size=batch_size,
        progress=functools.partial(report, "time a batch"),
    )
    return {
        "parameters": found.parameters,
        "flops": found.flops,
        "latency": found.latency,
        "peak_memory": found.peak_memory,
    }


def _rows(workdir: pathlib.Path) -> list[dict[str, Any]]:
    path = workdir / "rounds.json"
    remedy = "Remove it, and the rounds are made again."
    return run_directory.read_json(path, remedy) if path.exists() else []


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(caption="Latency and memory of a batch, measured; FLOPs of one image.")
    for header in ("round", "validation", "parameters", "MFLOPs", "ms", "MiB"):
        table.add_column(header, justify="right")
    for row in rows:
        table.add_row(
            str(row["round"]),
            f"{100 * row['validation_accuracy']:.1f}",
            f"{row['parameters']:,}",
            f"{row['flops'] / 1e6:.2f}",
            f"{1000 * row['latency']:.1f}",
            f"{row['peak_memory'] / 2**20:.1f}",
        )
    return table


def main() -> None:
    """Runs the command."""
    with progress.bars() as show:
        rows = shrink(flags.FLAGS.config, pathlib.Path(flags.FLAGS.workdir), report=show)
    Console().print(_table(rows))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, environment.CONFIG_HELP)
    flags.DEFINE_string("workdir", None, "The run's folder; made where it does not exist.")
    flags.adopt_module_key_flags(environment)
    flags.mark_flags_as_required(["config", "workdir"])
    environment.run(main)
