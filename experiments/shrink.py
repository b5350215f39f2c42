r"""Makes a trained network smaller: removes channels or residual blocks, fine-tunes, and again.

    python -m experiments.shrink --config=experiments/configs/digits_shrink.py \
        --workdir=runs/small --config.init_from=runs/dense

Each round is kept in the run's folder; a run that was stopped goes on after its last round. The
result is evaluated like any other (experiments.evaluate). What pruned the network before stays: of
its mask each round keeps what belongs to the channels that are left. Where that mask removes whole
channels (config.method.granularity = "filter", say), they are gone after

    python -m experiments.shrink --config=experiments/configs/digits_shrink.py \
        --workdir=runs/small --config.init_from=runs/pruned --config.shrinking.remove=masked
"""

import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_dict, config_flags
from rich.console import Console
from rich.table import Table

from experiments import environment, from_config, progress, run_directory
from prunejax import data, masks, methods, names, pruning, shrinking, training, trees
from prunejax.classifier import Classifier
from prunejax.evaluation import efficiency, predict, work
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
      ValueError: a config that cannot be run.
    """
    from_config.check_ranges(config, {**from_config.LEAST, **LEAST})
    settings = config.shrinking
    from_config.check_table("method.allocation", config.method.get("allocation"))
    from_config.check_table("shrinking.allocation", settings.allocation)
    names.lookup("shrinking.target", settings.target, dict.fromkeys(COSTS))
    names.lookup("shrinking.remove", settings.remove, REMOVE)
    method = methods.create(**config.method)
    pruner = pruning.Pruner(
        criterion=settings.criterion,
        allocation=settings.allocation,
        include=settings.include,
        exclude=settings.exclude,
        aggregate=settings.aggregate,
        guard=settings.guard,
    )
    in_one_round = settings.remove == "masked"
    if not in_one_round:
        _require_shares(settings)
    if not config.init_from:
        raise ValueError("init_from is empty; name the folder of the run to make smaller.")
    train_set, validation_set = (
        from_config.load_split(config, split, report) for split in ("train", "validation")
    )
    start = pathlib.Path(config.init_from)
    first, mask = from_config.load_trained(run_directory.read_config(start), start, train_set)
    image_shape = train_set.image_shape
    network = shrinking.whole(first.apply_fn, first.variables)
    from_config.require_network(config, network.network, train_set)
    if in_one_round:
        _require_whole_channels(first, mask, image_shape, config.init_from)
    mesh = from_config.mesh(config)

    def chosen(classifier):
        """What a round removes, as a function of a classifier."""
        task = f"choose {settings.remove}"
        report(task, 0, 1)
        evidence = from_config.evidence(
            classifier, method, train_set.take(settings.examples), config.seed
        )
        without = REMOVE[settings.remove](classifier, mask, image_shape, pruner, evidence, settings)
        report(task, 1, 1)
        return without

    run_directory.check_run(workdir, config)
    rows = _rows(workdir)
    # The first choice is made before anything is written: it refuses what cannot be chosen.
    choices = [] if rows else [chosen(Classifier(first.variables, network))]
    run_directory.open_run(workdir, config)
    if not rows:
        rows = [_row(0, first, validation_set, settings.batch_size, report)]
        run_directory.write_json(workdir / "rounds.json", rows)
    classifier = Classifier(first.variables, network)
    if len(rows) > 1:
        classifier, mask = from_config.load_shrunk(
            workdir / "rounds" / str(len(rows) - 1), first, image_shape
        )

    def remove(classifier):
        nonlocal mask
        without = choices.pop() if choices else chosen(classifier)
        smaller, mask = without(classifier, check=True), _mask_without(without, classifier, mask)
        return smaller

    def finetune(classifier, number):
        nonlocal mask
        steps = len(batches.epoch_indices(len(train_set), config.batch_size, config.seed, epoch=0))
        trained = training.train(
            classifier.apply_fn,
            training.Trained(classifier.variables, mask),
            [_under(mask, phase) for phase in method.phases(steps)],
            train_set,
            batch_size=config.batch_size,
            seed=config.seed + number,
            shift=config.dataset.shift,
            flip=config.dataset.flip,
            progress=lambda done, total: report(f"round {number}", done, total),
            mesh=mesh,
        )
        mask = trained.mask
        return Classifier(trained.variables, classifier.apply_fn)

    def cost(classifier):
        return float(_cost(classifier, image_shape, settings, report))

    rounds = shrinking.iterate(
        classifier,
        remove=remove,
        finetune=finetune,
        cost=cost,
        at_most=0 if in_one_round else settings.at_most * rows[0][settings.target],
        first_round=len(rows),
    )
    for number, classifier, _ in itertools.islice(rounds, 2 - len(rows) if in_one_round else None):
        from_config.save_shrunk(workdir / "rounds" / str(number), classifier, mask)
        rows.append(_row(number, classifier, validation_set, settings.batch_size, report))
        run_directory.write_json(workdir / "rounds.json", rows)
    from_config.save_shrunk(workdir, classifier, mask)
    return rows


def _require_shares(settings) -> None:
    """Raises a ValueError for shares of what a round takes and of what is to be left."""
    shares = ("share", "at_most") if settings.remove == "channels" else ("at_most",)
    for key in shares:
        if not 0 < settings[key] < 1:
            raise ValueError(f"shrinking.{key} is {settings[key]}; it must lie between 0 and 1.")


def _require_whole_channels(classifier: Classifier, mask: Any, image_shape, init_from: str) -> None:
    traced = shrinking.of(classifier.apply_fn, classifier.variables, image_shape)
    if shrinking.kept_channels(traced, classifier.params, mask).all():
        raise ValueError(
            f"shrinking.remove is 'masked', but the mask of init_from = {init_from!r} removes no "
            "channel wholly; take a run whose method.granularity is such as 'filter' or 'column', "
            "or remove 'channels'."
        )


def _mask_without(without, classifier: Classifier, mask: Any) -> Any:
    """What is left of the mask, in the place of the parameters, where `without` removes some."""
    whole = jax.tree.map(
        lambda p, keep: jnp.broadcast_to(keep, p.shape).astype(p.dtype), classifier.params, mask
    )
    left = without(classifier.with_params(whole), check=False).params
    # Whole leaves as `masks.dense` has them.
    return jax.tree.map(lambda keep: jnp.array(True) if keep.all() else keep != 0, left)


def _under(mask: Any, phase: training.Phase) -> training.Phase:
    """The phase, and whatever its method revives outside the mask is zero again after each step."""

    def update(trainable, auxiliary, step):
        trainable, auxiliary = phase.update(trainable, auxiliary, step)
        return masks.apply(trainable, mask), auxiliary

    return dataclasses.replace(
        phase, update=update, mask=lambda *state: masks.intersect(phase.mask(*state), mask)
    )


def _without_channels(classifier, mask, image_shape, pruner, evidence, settings):
    traced = shrinking.of(classifier.apply_fn, classifier.variables, image_shape)
    gone = shrinking.channel_mask(
        traced,
        classifier.variables,
        settings.share,
        pruner,
        current=mask,
        evidence=evidence,
        multiple=settings.multiple,
    )
    return lambda of, check: shrinking.shrink(of, gone, image_shape, check=check)


def _without_blocks(classifier, mask, image_shape, pruner, evidence, settings):
    lowest = shrinking.lowest_blocks(classifier, image_shape, settings.blocks, pruner, evidence)
    return lambda of, check: shrinking.remove_blocks(of, lowest, image_shape)


def _without_masked(classifier, mask, image_shape, pruner, evidence, settings):
    multiple = settings.multiple
    return lambda of, check: shrinking.shrink(
        of, mask, image_shape, multiple=multiple, carry=True, check=check
    )


# What a round removes, as a function of a classifier and of whether to compare both networks.
REMOVE = {"channels": _without_channels, "blocks": _without_blocks, "masked": _without_masked}


def _cost(classifier: Classifier, image_shape, settings, report) -> float:
    if settings.target == "flops":
        return sum(layer.flops for layer in work.count(classifier, image_shape))
    if settings.target == "parameters":
        return trees.size(classifier.params)
    return costs(classifier, image_shape, settings.batch_size, report)["latency"]


def _row(number: int, classifier: Classifier, held_out: data.Dataset, batch_size: int, report):
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
    return json.loads(path.read_text()) if path.exists() else []


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
