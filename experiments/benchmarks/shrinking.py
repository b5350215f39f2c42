r"""What a smaller network gains, and what a masked one does not.

    python -m experiments.benchmarks.shrinking --output=shrinking.json

For VGG-16 and ResNet-18 with all, half and a quarter of their channels: milliseconds of a forward
pass and of a training step, of the masked network and of the really smaller one, and the gain
beside that of the FLOPs; parameters, bytes on disk and the memory of a forward pass. Then what
masks cost a training step at each granularity, and how long it takes to make a global mask of a
ResNet-50. Weights are random: speed does not depend on them.
"""

import datetime
import functools
import importlib.metadata
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import app, flags
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table

from experiments import environment, progress
from experiments.benchmarks import machine, timing
from prunejax import masks, models, pruning, shrinking
from prunejax.canonical import canonical
from prunejax.classifier import Classifier, Network
from prunejax.evaluation import efficiency
from prunejax.training import batches, loop, objectives
from prunejax.training.phase import Phase

IMAGE_SHAPE = (32, 32, 3)
SHARES = (0.5, 0.75)  # of the channels, removed
# In one call, as in `training.train`, which makes ten and more: a single one takes up to 15 %
# longer on Linux, for the memory of each call is new and its pages come one by one.
STEPS = 4
# Of the printed tables, in columns: narrower ones would cut their numbers.
WIDTH = 110
# ResNet-18 has one dense layer, of 512 x 10 weights: no block of 4 x 4 fits, so blocks are 4 x 2.
GRANULARITIES = ("weight", "kernel", "filter", "channel", "row", "column", "2:4", "block4x2")

_NETWORKS = flags.DEFINE_list("networks", ["vgg16", "resnet18"], "The networks to time.")
_WIDTH = flags.DEFINE_float("width", 1.0, "Of the networks, as a share of the published.", 0.0)
_BATCH = flags.DEFINE_integer("batch_size", 64, "Images a step.", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timings of each candidate.", 1)
_SECONDS = flags.DEFINE_float("seconds", 0.5, "Each timing lasts about that long.", 0.0)
_OUTPUT = flags.DEFINE_string("output", "shrinking.json", "A JSON file for all numbers, or none.")


def main(argv: list[str]) -> None:
    """Times, prints and saves."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}: flags begin with --")
    environment.configure(flags.FLAGS.cpu_devices)
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine.description(),
        "versions": {n: importlib.metadata.version(n) for n in ("prunejax", "jax", "jaxlib")},
        "batch_size": _BATCH.value,
        "shrunk": [],
    }
    with progress.bars() as show:
        for name in _NETWORKS.value:
            report["shrunk"] += _shrunk(name, functools.partial(show, name))
            _save(report)
        report["masked_training"] = _masked_training(functools.partial(show, "masks"))
        report["resnet50_global_mask_seconds"] = _mask_seconds()
    _save(report)
    _print(report)


def classifier_of(name: str) -> Classifier:
    """A random network of the zoo."""
    network = Network(models.create(name, num_classes=10))
    if _WIDTH.value != 1.0:
        whole = network.module
        network = Network(whole.clone(width=round(whole.width * _WIDTH.value)))
    return Classifier(network.init(jax.random.key(0), IMAGE_SHAPE), network)


def _shrunk(name: str, show) -> list[dict[str, Any]]:
    """One row for each share of the channels, the whole network first."""
    classifier = classifier_of(name)
    traced = shrinking.structure_of(classifier.apply_fn, classifier.variables, IMAGE_SHAPE)
    networks = {"whole": classifier}
    for share in SHARES:
        mask = shrinking.channel_mask(traced, classifier.variables, share)
        networks[f"masked {share:g}"] = classifier.with_params(masks.apply(classifier.params, mask))
        networks[f"smaller {share:g}"] = shrinking.shrink(classifier, mask, IMAGE_SHAPE)
    candidates = [
        timing.Candidate(f"{kind} {key}", steps * _BATCH.value, make(network))
        for key, network in networks.items()
        for kind, make, steps in (("forward", _forward, 1), ("training", _training, STEPS))
    ]
    rates = timing.compare(candidates, rounds=_ROUNDS.value, seconds=_SECONDS.value, progress=show)
    costs = {
        key: efficiency.efficiency(network, IMAGE_SHAPE, batch_size=_BATCH.value, repeats=1)
        for key, network in networks.items()
    }
    whole = costs["whole"]
    return [
        {
            "network": name,
            "channels": key,
            "parameters": cost.parameters,
            "flops": cost.flops,
            "flops_ratio": whole.flops / cost.flops,
            "bytes_on_disk": cost.bytes_on_disk,
            "peak_memory": cost.peak_memory,
            **{
                f"{kind}_{what}": value
                for kind in ("forward", "training")
                for what, value in (
                    ("ms", 1000 * _BATCH.value / rates[f"{kind} {key}"].best),
                    ("ratio", rates[f"{kind} {key}"].best / rates[f"{kind} whole"].best),
                    ("median_ms", 1000 * _BATCH.value / rates[f"{kind} {key}"].median),
                )
            },
        }
        for key, cost in costs.items()
    ]


def _shared(tree: Any, *axes: str | None) -> Any:
    """Arrays on all devices, cut along the axis "data"."""
    return jax.device_put(tree, NamedSharding(batches.data_mesh(), PartitionSpec(*axes)))


def _forward(classifier: Classifier):
    """One pass, the batch shared by all devices as in an attack or an evaluation."""
    images = jax.random.uniform(jax.random.key(1), (_BATCH.value, *IMAGE_SHAPE))
    images, classifier = _shared(images, "data"), _shared(classifier)
    run = jax.jit(canonical(lambda classifier, images: classifier(images)))
    return lambda: run(classifier, images).block_until_ready()


def _training(classifier: Classifier, tx: optax.GradientTransformation | None = None):
    """Steps of natural training as `training.train` makes them, on all devices, `STEPS` a call."""
    tx = optax.sgd(1e-3, momentum=0.9) if tx is None else tx
    phase = Phase(name="t", epochs=1, objective=objectives.natural(), optimizer=lambda mask: tx)
    mask = masks.dense(classifier.params)
    start = loop.Trained(classifier.variables, mask)
    images = jax.random.randint(jax.random.key(1), (STEPS, _BATCH.value, *IMAGE_SHAPE), 0, 256)
    labels = jnp.tile(jnp.arange(_BATCH.value) % 10, (STEPS, 1))
    examples = _shared((images.astype(jnp.uint8), labels), None, "data")
    none = images[0, :0], labels[0, :0]
    begin = functools.partial(loop.begin, classifier.apply_fn, phase, draw=(0, 0))
    state = _shared(jax.jit(begin)(start, None, none))
    run = loop.compile_steps(classifier.apply_fn, phase, mask, (0, 0), shift=0, flip=False)

    def call():
        nonlocal state
        state, _ = jax.block_until_ready(run(state, examples))

    return call


def _masked_training(show) -> list[dict[str, Any]]:
    """What a mask of each granularity costs: of a training step, and of the optimiser alone."""
    classifier = classifier_of("resnet18")
    sgd = optax.sgd(1e-3, momentum=0.9)
    optimizers = {"dense": sgd}
    for number, granularity in enumerate(GRANULARITIES):
        pruner = pruning.Pruner(granularity=granularity, exclude=("Conv_0/kernel",))
        mask = pruning.prune(classifier.params, 0.5, pruner)
        optimizers[granularity] = pruning.masked(sgd, mask)
        if 2 * number == len(GRANULARITIES):
            optimizers["dense, amid"] = sgd
    # Asks at every step whether the mask is to change, which none of those that are timed does.
    schedule = pruning.cubic(0.5, begin=10**6, end=2 * 10**6, frequency=10**5)
    optimizers["scheduled"] = pruning.optimizer(sgd, pruning.Pruner(), schedule)
    optimizers["dense, last"] = sgd
    candidates = [
        timing.Candidate(f"{kind} {name}", steps, make(classifier, tx))
        for kind, make, steps in (("step", _training, STEPS), ("update", _update, 1))
        for name, tx in optimizers.items()
    ]
    rates = timing.compare(candidates, rounds=_ROUNDS.value, seconds=_SECONDS.value, progress=show)
    seconds = {name: 1 / rate.best for name, rate in rates.items()}
    # One program three times: their difference is what the machine adds to any of them.
    step, update = (
        min(seconds[f"{kind} {name}"] for name, tx in optimizers.items() if tx is sgd)
        for kind in ("step", "update")
    )
    return [
        {
            "granularity": name,
            "step_ms": 1000 * seconds[f"step {name}"],
            "update_ms": 1000 * seconds[f"update {name}"],
            "cost": seconds[f"step {name}"] / step,
            # The rest of a step is the same; this is less noisy than a quotient of whole steps.
            "cost_of_update": 1 + (seconds[f"update {name}"] - update) / step,
        }
        for name in optimizers
    ]


def _update(classifier: Classifier, tx: optax.GradientTransformation):
    """The optimiser's part of a training step, one a call."""
    grads = jax.tree.map(lambda weight: 0.01 * weight + 1e-3, classifier.params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params, state):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    carried = jax.tree.map(jnp.copy, classifier.params), tx.init(classifier.params)

    def call():
        nonlocal carried
        carried = jax.block_until_ready(update(*carried))

    return call


def _mask_seconds() -> float:
    """To make a global magnitude mask of a ResNet-50, once compiled."""
    network = Network(models.create("resnet50", num_classes=1000))
    params = network.init(jax.random.key(0), (64, 64, 3))["params"]
    prune = jax.jit(lambda p: pruning.prune(p, 0.9, pruning.Pruner(allocation="global")))
    jax.block_until_ready(prune(params))
    return min(timing.elapsed(lambda: jax.block_until_ready(prune(params))) for _ in range(3))


def _save(report: Mapping[str, Any]) -> None:
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(report, indent=2) + "\n")


def _print(report: Mapping[str, Any]) -> None:
    table = Table(title=f"milliseconds a batch of {report['batch_size']}, and times as fast")
    for header in (
        *("network", "channels", "parameters", "MiB", "FLOPs"),
        *("forward", "x", "GFLOP/s", "training", "x"),
    ):
        table.add_column(header, justify="right")
    for row in report["shrunk"]:
        # A ratio alone does not tell a fast network from one beside a slow one.
        rate = report["batch_size"] * row["flops"] / row["forward_ms"] / 1e6
        table.add_row(
            row["network"], row["channels"], f"{row['parameters']:,}",
            f"{row['peak_memory'] / 2**20:.0f}", f"{row['flops_ratio']:.2f}",
            f"{row['forward_ms']:.1f}", f"{row['forward_ratio']:.2f}", f"{rate:.0f}",
            f"{row['training_ms']:.1f}", f"{row['training_ratio']:.2f}",
        )  # fmt: skip
    masked = Table(title="a training step of ResNet-18 with a mask, over the fastest without")
    masked.add_column("granularity")
    masked.add_column("x", justify="right")
    masked.add_column("x, by the optimiser's part", justify="right")
    for row in report["masked_training"]:
        masked.add_row(row["granularity"], f"{row['cost']:.3f}", f"{row['cost_of_update']:.3f}")
    console = Console(width=WIDTH)
    console.print(table)
    console.print(masked)
    console.print(f"global mask of ResNet-50: {report['resnet50_global_mask_seconds']:.2f} s")


if __name__ == "__main__":
    flags.adopt_module_key_flags(environment)
    app.run(main)
