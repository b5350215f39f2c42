r"""How fast attacks and training are, inside compiled loops and out of them, and beside torch.

For example:

    python -m experiments.benchmarks.throughput
    python -m experiments.benchmarks.throughput --peers --networks=strided_cnn --output=speed.json

Images are random, and so are the networks: speed does not depend on them. Two kinds of work:

    pgd       examples x steps a second of PGD (Linf, cross-entropy, a fixed number of steps) on
              images that it never finishes early, for its budget is far too small
    training  images a second of natural training (SGD with momentum)

Each is done by

    loop      the compiled loop of `attacks.run`, the compiled epoch of `training.train`
    step      one compiled step after another, called from Python
    run       (pgd) `attacks.run` itself, with its checks before and after the steps
    torch, foolbox, torchattacks
              (with --peers, of `experiments/benchmarks/install_peers.sh`) the same steps on the
              same weights and cores, channels last where that is faster

in turn, round after round; the best round counts, the median shows whether the machine was idle.
Two to three minutes on two cores, about twice that with --peers.
"""

import datetime
import functools
import importlib.metadata
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from absl import app, flags
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from experiments import environment, progress
from experiments.benchmarks import machine, throughput_ours, throughput_peers, timing
from experiments.benchmarks.throughput_ours import CASES, Case
from prunejax.training import batches

# Without the rewriting of convolutions that loops need, a step may be faster.
STEPS = ("step", "plain step")

_NETWORKS = flags.DEFINE_list(
    "networks", [case.network for case in CASES], "The networks to time, separated by commas."
)
_PEERS = flags.DEFINE_bool(
    "peers", False, "Time torch, foolbox and torchattacks as well; they must be installed."
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "A JSON file for all numbers; they are only printed where it is not given."
)
_SECONDS = flags.DEFINE_float(
    "seconds", 0.4, "Each timing repeats its call until it lasts about that long.", lower_bound=0.0
)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timings of each candidate.", lower_bound=1)


def main(argv: list[str]) -> None:
    """Times, prints and saves."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}: flags begin with --")
    known = {case.network: case for case in CASES}
    for name in _NETWORKS.value:
        if name not in known:
            raise app.UsageError(f"--networks has {name!r}; it may have {', '.join(known)}")
    environment.configure(flags.FLAGS.cpu_devices)
    if _PEERS.value and jax.default_backend() != "cpu":
        raise app.UsageError("--peers is for the CPU, set JAX_PLATFORMS=cpu")

    rows, ratios = [], []
    with progress.bars() as show:
        for name in _NETWORKS.value:
            for work, candidates in _work(known[name]).items():
                measured = timing.compare(
                    candidates,
                    rounds=_ROUNDS.value,
                    seconds=_SECONDS.value,
                    progress=functools.partial(show, f"{name} {work}"),
                )
                rows += [_row(name, work, measurement) for measurement in measured.values()]
                ratios += [
                    {"network": name, "work": work, "ratio": what, "value": value}
                    for what, value in _ratios(measured).items()
                ]
                report = _report(rows, ratios)
                if _OUTPUT.value:  # as soon as it is known: a run takes minutes
                    pathlib.Path(_OUTPUT.value).write_text(json.dumps(report, indent=2) + "\n")
    _print(Console(), report)


def _report(rows: list[dict], ratios: list[dict]) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine.description(),
        "versions": _versions(),
        "settings": _settings(),
        "measurements": rows,
        "ratios": ratios,
        "peak_memory_mib": machine.peak_memory_mib(),
    }


def _work(case: Case) -> dict[str, list[timing.Candidate]]:
    """What is to be compared with each other."""
    classifier = throughput_ours.classifier_of(case)
    work = {"pgd": [], "training": []}
    for mesh in _meshes():
        work["pgd"] += throughput_ours.attack_candidates(case, classifier, mesh)
        work["training"] += throughput_ours.training_candidates(case, classifier, mesh)
    if _PEERS.value:
        work["pgd"] += throughput_peers.attack_candidates(case, classifier)
        work["training"].append(throughput_peers.training_candidate(case, classifier))
    return work


def _meshes() -> list[Mesh]:
    devices = jax.local_devices()
    return [batches.data_mesh(devices[:number]) for number in sorted({1, len(devices)})]


def _ratios(measured: Mapping[str, timing.Measurement]) -> dict[str, float]:
    """Quotients of best rates, where both were measured."""
    best = {name: measurement.best for name, measurement in measured.items()}
    ours = [name for name in best if "device" in name]
    peers = {name: best[name] for name in best if name not in ours}
    result = {}
    for name in ours:
        what, _, where = name.partition(", ")
        if what == "loop":
            steps = [best[f"{step}, {where}"] for step in STEPS if f"{step}, {where}" in best]
            result[f"loop / step, {where}"] = best[name] / max(steps)
    for what in dict.fromkeys(name.partition(", ")[0] for name in ours):
        one, *more = (name for name in ours if name.startswith(f"{what}, "))
        for name in more:
            result[f"{name} / 1"] = best[name] / best[one]
    if peers:
        fastest = max(peers, key=peers.__getitem__)
        for what in ("loop", "run"):
            rates = [best[name] for name in ours if name.startswith(what)]
            if rates:
                result[f"{what} / {fastest}, the fastest peer"] = max(rates) / peers[fastest]
    return result


def _row(network: str, work: str, measurement: timing.Measurement) -> dict[str, Any]:
    return {
        "network": network,
        "work": work,
        "candidate": measurement.name,
        "best_per_second": measurement.best,
        "median_per_second": measurement.median,
        "rounds_per_second": list(measurement.rates),
    }


def _versions() -> dict[str, str]:
    names = ["prunejax", "jax", "jaxlib", "flax", "optax", "numpy"]
    if _PEERS.value:
        names += ["torch", "foolbox", "torchattacks"]
    return {name: importlib.metadata.version(name) for name in names}


def _settings() -> dict[str, Any]:
    return {
        "seconds": _SECONDS.value,
        "rounds": _ROUNDS.value,
        "attack": repr(throughput_ours.ATTACK),
        "eps": throughput_ours.EPS,
        "attack_batch": {case.network: case.attack_batch for case in CASES},
        "training_batch": throughput_ours.TRAINING_BATCH,
        "training_steps": throughput_ours.TRAINING_STEPS,
    }


def _print(console: Console, report: Mapping[str, Any]) -> None:
    on = report["machine"]
    table = Table(
        title=f"{on['device']} ({on['processor']}, {on['cores']} cores)",
        caption="pgd: examples x steps a second; training: images a second",
    )
    for column in ("network", "work", "by"):
        table.add_column(column)
    for column in ("best", "median"):
        table.add_column(column, justify="right")
    for row in report["measurements"]:
        table.add_row(
            row["network"],
            row["work"],
            row["candidate"],
            f"{row['best_per_second']:,.0f}",
            f"{row['median_per_second']:,.0f}",
        )
    console.print(table)
    ratios = Table("network", "work", "ratio of best rates", "")
    for row in report["ratios"]:
        ratios.add_row(row["network"], row["work"], row["ratio"], f"{row['value']:.2f}")
    console.print(ratios)
    console.print(f"Peak memory of the process: {report['peak_memory_mib']:,.0f} MiB")


if __name__ == "__main__":
    flags.adopt_module_key_flags(environment)
    app.run(main)
