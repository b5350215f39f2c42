r"""What a network keeps when it is shrunk to half of its FLOPs: accuracy, robustness, latency.

    python -m experiments.benchmarks.shrinking_accuracy --workdir=runs/shrinking --output=kept.json

A narrow VGG-11 and a ResNet-8 are trained adversarially on the lossless part of CIFAR-10 in
../shared/data (4,000 training images of which a tenth are for validation, 500 of its test images
attacked), then pruned by a sixth of each layer's channels, shrunk and fine-tuned, in rounds, until
half of the FLOPs are left. Latency is measured at the end, of all networks in turn.
"""

import datetime
import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import environment, evaluate, from_config, progress, run_directory, shrink, train
from experiments.benchmarks import machine, timing
from experiments.configs.cifar10_subset import cifar10_subset
from prunejax.canonical import canonical
from prunejax.classifier import Classifier

NETWORKS = {
    "vgg11": {"width": 16, "hidden": (64,)},
    "resnet8": {"width": 16},
}
FINETUNING_EPOCHS = 2
BATCH = 128


def convert(source: pathlib.Path, path: pathlib.Path) -> None:
    """The PNG files as one .npz: training, validation (every tenth of them) and test."""
    from PIL import Image

    def images(pattern: str) -> np.ndarray:
        files = sorted(source.glob(pattern))
        return np.concatenate([np.asarray(Image.open(f)).reshape(-1, 32, 32, 3) for f in files])

    labels = np.load(source / "labels.npz")
    seen, of_seen = images("train_*.png"), labels["train"]
    of_seen = of_seen[: len(seen)].astype(np.int64)
    held_out = np.arange(len(seen)) % 10 == 0
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        train_images=seen[~held_out], train_labels=of_seen[~held_out],
        validation_images=seen[held_out], validation_labels=of_seen[held_out],
        test_images=images("test_*.png"), test_labels=labels["test_first_1000"].astype(np.int64),
    )  # fmt: skip


def run(workdir: pathlib.Path, source: pathlib.Path, show) -> dict[str, Any]:
    """Trains, shrinks and evaluates what is not there yet; returns the report."""
    data = workdir / "cifar10_subset.npz"
    if not data.exists():
        convert(source, data)
    networks, rows = {}, []
    for name, options in NETWORKS.items():
        config = cifar10_subset(str(data), name, **options)
        train.train(config, workdir / name, report=show)
        smaller = cifar10_subset(str(data), name, **options)
        smaller.init_from = str(workdir / name)
        smaller.method.epochs = FINETUNING_EPOCHS
        shrink.shrink(smaller, workdir / f"{name}_small", report=show)
        for run_name, its_config in ((name, config), (f"{name}_small", smaller)):
            folder = workdir / run_name
            test = from_config.load_split(its_config, "test")
            networks[run_name] = from_config.load_trained(its_config, folder, test)[0]
            summary = evaluate.evaluate_run(folder, report=show)
            rows.append(_row(run_name, summary, folder, networks[run_name]))
    candidates = [
        timing.Candidate(name, BATCH, _forward(network)) for name, network in networks.items()
    ]
    rates = timing.compare(
        candidates, rounds=5, seconds=0.5, progress=functools.partial(show, "latency")
    )
    for row in rows:
        row["ms"] = 1000 * BATCH / rates[row["network"]].best
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine.description(),
        "jax": jax.__version__,
        "data": "CIFAR-10, original pixels, the first 4,000 training and 1,000 test images: a part",
        "batch_size": BATCH,
        "networks": rows,
    }


def _row(name, summary, folder, network) -> dict[str, Any]:
    rounds = folder / "rounds.json"
    costs = shrink.costs(network, (32, 32, 3), BATCH)
    return {
        "network": name,
        "rounds": len(json.loads(rounds.read_text())) - 1 if rounds.exists() else 0,
        "accuracy": summary["clean_accuracy"],
        "robust_accuracy": summary["robust_accuracy"][0]["accuracy"],
        "eps": summary["robust_accuracy"][0]["budget"],
        "examples": summary["examples"],
        "parameters": costs["parameters"],
        "flops": costs["flops"],
    }


def _forward(network: Classifier):
    images = jnp.zeros((BATCH, 32, 32, 3))
    run = jax.jit(canonical(lambda network, images: network(images)))
    return lambda: run(network, images).block_until_ready()


def main() -> None:
    """Runs the command."""
    with progress.bars() as show:
        report = run(pathlib.Path(flags.FLAGS.workdir), pathlib.Path(flags.FLAGS.data), show)
    if flags.FLAGS.output:
        run_directory.write_json(pathlib.Path(flags.FLAGS.output), report)
    table = Table(caption=f"{report['data']}; ms a batch of {BATCH}")
    for header in ("network", "clean %", "robust %", "parameters", "MFLOPs", "ms"):
        table.add_column(header, justify="right")
    for row in report["networks"]:
        table.add_row(
            row["network"], f"{100 * row['accuracy']:.1f}", f"{100 * row['robust_accuracy']:.1f}",
            f"{row['parameters']:,}", f"{row['flops'] / 1e6:.1f}", f"{row['ms']:.1f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/shrinking", "Folder for the runs.")
    flags.DEFINE_string(
        "data", "../shared/data/cifar10_lossless_subset", "The PNG files and labels."
    )
    flags.DEFINE_string("output", None, "A JSON file for the table; by default none.")
    flags.adopt_module_key_flags(environment)
    environment.run(main)
