r"""How strong and how fast the attacks are, beside those of other libraries on the same weights.

For example:

    python -m experiments.benchmarks.attacks --examples=200
    python -m experiments.benchmarks.attacks --peers --attacks=apgd_ce,fab_t --output=attacks.json
    python -m experiments.benchmarks.attacks --network=mnist --attacks=autoattack
    python -m experiments.benchmarks.attacks --network=runs/resnet8 --eps_linf=0.03
    python -m experiments.benchmarks.attacks --peers --attacks=sigma_zero,fmn_l0 --all_images

The network is a published one of ../shared/reference_models whose robust accuracy is known
(fashion_mnist, Linf 0.1: exactly 676 of the first 1,000 images; mnist, Linf 0.3), or the one of a
run directory. Everything runs on the images that it gets right; with --all_images the others count
too, at distance 0. Ours are called once before on part of the images, so that compiling is not in
their time; it is reported by itself, with tracing and lowering. With --peers
(`experiments/benchmarks/install_peers.sh`) the same attack of other libraries follows in the same
run, called once before on a few images, for some compile too; one that raises an error is recorded
as failed. Peak memory is that of the whole process during the attack, with all that it held before.
"""

import datetime
import gzip
import importlib.metadata
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from experiments import environment, from_config, progress, run_directory
from experiments.benchmarks import attack_cases, machine, peer_attacks, timing
from experiments.benchmarks.attack_cases import Case
from prunejax import attacks, models, norms
from prunejax.classifier import Classifier, Network
from prunejax.evaluation import predict

_ATTACKS = flags.DEFINE_list("attacks", None, "Which to run, separated by commas; by default all.")
_EXAMPLES = flags.DEFINE_integer("examples", 1000, "The first images of the test set.", 1, 10_000)
_BATCH = flags.DEFINE_integer("batch_size", 64, "Examples under attack at a time.", 1)
_NETWORK = flags.DEFINE_string(
    "network", "fashion_mnist", "fashion_mnist, mnist, or a run's folder."
)
_EPS = {
    norm: flags.DEFINE_float(f"eps_{norm}", None, f"Budget in {norm}; by default the network's.", 0)
    for norm in ("linf", "l2", "l1", "l0_pixels")
}
_ALL_IMAGES = flags.DEFINE_bool(
    "all_images", False, "Count images that the network gets wrong too, at distance 0."
)
_PEERS = flags.DEFINE_bool("peers", False, "Run the other libraries' too; they must be installed.")
_SHARED = flags.DEFINE_string("shared", "../shared", "Where reference_models/ and data/ are.")
_OUTPUT = flags.DEFINE_string("output", "attacks.json", "A JSON file for all numbers, or none.")


# Of the printed table, in columns: narrower ones would cut its numbers.
WIDTH = 130
# Images on which another library's attack is called before it is timed.
WARM = 4
# A minimum-norm result that is not misclassified is looked at again so much farther, in shares.
PUSH = 1e-4


class Reference(NamedTuple):
    """A published network: its weights, its data's folder, and the budgets to attack it with."""

    weights: str
    data: str
    eps: Mapping[str, float]


REFERENCES = {
    "fashion_mnist": Reference(
        "fashion_mnist_linf_0.1.npz",
        "fashion_mnist",
        {"linf": 0.1, "l2": 1.5, "l1": 10.0, "l0_pixels": 5.0},
    ),
    "mnist": Reference(
        "mnist_linf_0.3.npz", "mnist", {"linf": 0.3, "l2": 2.0, "l1": 15.0, "l0_pixels": 5.0}
    ),
}


class Target(NamedTuple):
    """What is attacked: a network of the registry, images, which of them it gets right, budgets."""

    model: str
    classifier: Classifier
    images: np.ndarray
    labels: np.ndarray
    right: np.ndarray
    eps: Mapping[str, float]
    description: str


def main(argv: list[str]) -> None:
    """Runs, prints and saves."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}: flags begin with --")
    known = attack_cases.cases(dict.fromkeys(_EPS, 1.0))
    chosen = _ATTACKS.value or list(known)
    for name in chosen:
        if name not in known:
            raise app.UsageError(f"--attacks has {name!r}; it may have {', '.join(known)}")
    environment.configure(flags.FLAGS.cpu_devices)
    compiling = _watch_compiling()
    target = _target()
    known = attack_cases.cases(target.eps)
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine.description(),
        "versions": _versions(),
        "data": target.description,
        "measurements": [],
    }
    try:
        with progress.bars() as show:
            for number, name in enumerate(chosen):
                show("attacks", number, len(chosen))
                for row in _measure(name, known[name], target):
                    report["measurements"].append(row)
                    _save(report | {"compile_seconds": timing.covered(compiling)})
            show("attacks", len(chosen), len(chosen))
    finally:  # what was measured is shown also where a peer failed
        _print(report)
        report["compile_seconds"] = timing.covered(compiling)
        peaks = [row["peak_memory_mib"] or 0.0 for row in report["measurements"]]
        report["peak_memory_mib"] = max([machine.peak_memory_mib(), *peaks])
        _save(report)


def _save(report: Mapping[str, Any]) -> None:
    if _OUTPUT.value:
        text = json.dumps(report, indent=2, allow_nan=False)
        pathlib.Path(_OUTPUT.value).write_text(text + "\n")


def _watch_compiling() -> list[tuple[float, float]]:
    """A list to which all that JAX traces, lowers or compiles adds when it began and ended."""
    spans: list[tuple[float, float]] = []

    def listen(event: str, start: float, end: float, **_) -> None:
        if event.startswith("/jax/core/compile/"):
            spans.append((start, end))

    jax.monitoring.register_event_time_span_listener(listen)
    return spans


def _target() -> Target:
    name = _NETWORK.value
    if name in REFERENCES:
        model, classifier, images, labels = "strided_cnn", *_reference(REFERENCES[name])
        eps = REFERENCES[name].eps
    else:
        folder = pathlib.Path(name)
        config = run_directory.read_config(folder)
        test = from_config.load_split(config, "test")
        model, classifier = config.model.name, from_config.load_trained(config, folder, test)[0]
        images, labels = test.images.astype(np.float32) / 255, test.labels
        eps = REFERENCES["fashion_mnist"].eps
    images, labels = images[: _EXAMPLES.value], labels[: _EXAMPLES.value]
    right = predict(classifier, images) == labels
    if _ALL_IMAGES.value:
        which = f"the first {len(images)} test images, {right.sum()} of them classified right"
    else:
        which = f"{right.sum()} of the first {len(images)} test images, classified right"
        images, labels, right = images[right], labels[right], right[right]
    eps = {norm: eps[norm] if flag.value is None else flag.value for norm, flag in _EPS.items()}
    return Target(model, classifier, images, labels, right, eps, f"{name}, {model}: {which}")


def _reference(reference: Reference) -> tuple[Classifier, np.ndarray, np.ndarray]:
    shared = pathlib.Path(_SHARED.value)

    def read(name: str, header: int) -> np.ndarray:
        content = gzip.decompress((shared / "data" / reference.data / name).read_bytes())
        return np.frombuffer(content, np.uint8, offset=header)

    images = read("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28, 1)
    labels = read("t10k-labels-idx1-ubyte.gz", 8).astype(int)
    params: dict[str, dict[str, np.ndarray]] = {}
    with np.load(shared / "reference_models" / reference.weights) as weights:
        for path, value in weights.items():
            layer, name = path.split("/")
            params.setdefault(layer, {})[name] = value
    network = Network(models.create("strided_cnn", num_classes=10))
    return Classifier({"params": params}, network), images.astype(np.float32) / 255, labels


def _measure(name: str, case: Case, target: Target) -> Iterator[dict[str, Any]]:
    """Our row, and one for each peer, each as soon as it is known."""
    model, classifier, images, labels, right, *_ = target

    def ours(number: int):
        return attacks.run(
            case.attack, classifier, images[:number], labels[:number],
            key=jax.random.key(0), eps=case.eps, batch_size=_BATCH.value,
        ).images  # fmt: skip

    row = {"attack": name, "norm": case.attack.norm, "eps": case.eps, "examples": len(images)}
    ours(min(len(images), _BATCH.value))
    found, cost = _timed(lambda: ours(len(images)))
    seconds = cost["seconds"]
    yield row | {"library": "prunejax"} | cost | _worth(case, target, found)
    if not _PEERS.value:
        return

    network = peer_attacks.network_of(model, classifier, images[:64])
    for library, peer in case.peers.items():

        def theirs(which, peer=peer):
            found = np.array(images)  # at distance 0 where the network is wrong anyway
            found[which] = peer_attacks.perturb(
                peer, network, images[which], labels[which], case.eps
            )
            return found

        try:
            theirs(np.flatnonzero(right)[:WARM])
            found, cost = _timed(lambda theirs=theirs: theirs(right))
            result = {"times_ours": cost["seconds"] / seconds} | _worth(case, target, found)
        except Exception as error:  # whatever a library raises, the other rows are worth having
            cost = {"seconds": None, "examples_per_second": None, "peak_memory_mib": None}
            result = {"error": _first_sentence(error)}
        yield row | {"library": library} | cost | result


def _timed(attack: Callable[[], Any]) -> tuple[np.ndarray, dict[str, float | None]]:
    machine.reset_peak_memory()
    start = time.perf_counter()
    found = np.asarray(attack())
    seconds = time.perf_counter() - start
    return found, {
        "seconds": seconds,
        "examples_per_second": len(found) / seconds,
        "peak_memory_mib": machine.peak_memory_since_reset_mib(),
    }


def _worth(case: Case, target: Target, found: np.ndarray) -> dict[str, Any]:
    """What is worth what: measured alike for everyone, by our forward pass and our norms."""

    def misclassified(images):
        return predict(target.classifier, images) != target.labels

    found = np.clip(found, 0, 1)
    success = misclassified(found)
    if case.eps is None:
        # Where a library rests on the boundary by its own forward pass, rounding decides for ours.
        pushed = np.clip(target.images + (1 + PUSH) * (found - target.images), 0, 1)
        saved = ~success & misclassified(pushed)
        found[saved], success = pushed[saved], success | saved
    distance = jax.jit(jax.vmap(norms.get(case.attack.norm).distance))(found - target.images)
    if case.eps is not None:
        success &= np.asarray(distance) <= case.eps * (1 + 1e-5) + 1e-6
    distance = np.where(success, distance, np.inf)
    return {
        "robust": int(np.sum(~success)),
        "success": float(np.mean(success)),
        # JSON has no infinity: None is the median where most were not found.
        "median_distance": float(np.median(distance)) if success.mean() > 0.5 else None,
        "mean_distance_of_found": float(np.mean(distance[success])) if success.any() else None,
    }


def _first_sentence(error: Exception) -> str:
    sentence = " ".join(str(error).split()).partition(". ")[0]
    return f"{type(error).__name__}: {sentence}" if sentence else type(error).__name__


def _versions() -> dict[str, str]:
    names = ["prunejax", "jax", "jaxlib", "numpy"]
    if _PEERS.value:
        names += ["torch", "foolbox", "torchattacks", "adv-lib", "pyautoattack"]
    return {name: importlib.metadata.version(name) for name in names}


def _print(report: Mapping[str, Any]) -> None:
    table = Table(title=report["data"], caption="a second: examples; x: seconds over ours")
    table.add_column("attack")
    table.add_column("library")
    for header in (
        "norm", "eps", "found %", "robust", "median", "mean", "seconds", "a second", "x", "MiB",
    ):  # fmt: skip
        table.add_column(header, justify="right")
    rows = report["measurements"]
    for row in rows:
        table.add_row(
            row["attack"],
            row["library"],
            row["norm"],
            _number(row["eps"], "g"),
            _number(100 * row["success"] if "success" in row else None, ".1f"),
            str(row.get("robust", "failed")),
            _number(row.get("median_distance"), ".4g"),
            _number(row.get("mean_distance_of_found"), ".4g"),
            _number(row["seconds"], ".1f"),
            _number(row["examples_per_second"], ".1f"),
            _number(row.get("times_ours"), ".2f"),
            _number(row["peak_memory_mib"], ".0f"),
        )
    console = Console()
    console.width = max(console.width, WIDTH)
    console.print(table)
    for row in rows:
        if "error" in row:
            console.print(f"{row['attack']} of {row['library']} failed: {row['error']}")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


if __name__ == "__main__":
    flags.adopt_module_key_flags(environment)
    app.run(main)
