r"""How strong and how fast the attacks are, beside those of other libraries on the same weights.

For example:

    python -m experiments.benchmarks.attacks --examples=200
    python -m experiments.benchmarks.attacks --peers --attacks=apgd_ce,fab_t --output=attacks.json
    python -m experiments.benchmarks.attacks --network=mnist --attacks=autoattack
    python -m experiments.benchmarks.attacks --network=runs/resnet8 --eps_linf=0.03

The network is a published one of ../shared/reference_models whose robust accuracy is known
(fashion_mnist, Linf 0.1: exactly 676 of the first 1,000 images; mnist, Linf 0.3), or the one of a
run directory. Everything runs on the images that it gets right. Ours are called once before on
part of the images, so that compiling is not in their time; it is reported by itself. With --peers
(`experiments/benchmarks/install_peers.sh`) the same attack of other libraries follows in the same
run.
"""

import datetime
import gzip
import importlib.metadata
import json
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from experiments import environment, from_config, progress, run_directory
from experiments.benchmarks import machine, peer_attacks, torch_networks
from prunejax import attacks, models, norms
from prunejax.classifier import Classifier, Network

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
_PEERS = flags.DEFINE_bool("peers", False, "Run the other libraries' too; they must be installed.")
_SHARED = flags.DEFINE_string("shared", "../shared", "Where reference_models/ and data/ are.")
_OUTPUT = flags.DEFINE_string("output", None, "A JSON file for all numbers; by default none.")


class Case(NamedTuple):
    """One of our attacks, its budget (None: minimum norm), and the same attack elsewhere."""

    attack: attacks.Attack | attacks.Cascade
    eps: float | None
    peers: Mapping[str, peer_attacks.Peer]


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
    """What is attacked: a network of the registry, the images that it gets right, and budgets."""

    model: str
    classifier: Classifier
    images: np.ndarray
    labels: np.ndarray
    eps: Mapping[str, float]
    description: str


def cases(eps: Mapping[str, float]) -> dict[str, Case]:
    """All comparisons, by name, at these budgets."""
    peer = peer_attacks
    linf, l2, l1, pixels = (eps[norm] for norm in ("linf", "l2", "l1", "l0_pixels"))
    return {
        "pgd": Case(
            attacks.PGD(steps=40, loss="cross_entropy"),
            linf,
            {
                "foolbox": peer.foolbox("LinfPGD", steps=40, rel_stepsize=2.5 / 40),
                "torchattacks": peer.torchattacks("PGD", budget="eps", steps=40, alpha=linf / 16),
            },
        ),
        "apgd_ce": Case(attacks.APGD(), linf, {"pyautoattack": peer.apgd("linf", "ce")}),
        "apgd_dlr": Case(
            attacks.APGD(loss="dlr"), linf, {"pyautoattack": peer.apgd("linf", "dlr")}
        ),
        "apgd_t": Case(
            attacks.APGD(loss="dlr", targets=9), linf, {"pyautoattack": peer.apgd("linf", None)}
        ),
        "apgd_ce_l2": Case(attacks.APGD(norm="l2"), l2, {"pyautoattack": peer.apgd("l2", "ce")}),
        "apgd_ce_l1": Case(
            attacks.APGD(norm="l1", larger_budgets=True),
            l1,
            {"pyautoattack": peer.apgd("l1", "ce", larger_budgets=True)},
        ),
        "fab_t": Case(attacks.FAB(targets=9), None, {"pyautoattack": peer.fab_t("linf")}),
        "fab_t_l2": Case(
            attacks.FAB(norm="l2", targets=9), None, {"pyautoattack": peer.fab_t("l2")}
        ),
        "square": Case(attacks.Square(), linf, {"pyautoattack": peer.square("linf", 5000)}),
        "square_l2": Case(
            attacks.Square(norm="l2", steps=1000), l2, {"pyautoattack": peer.square("l2", 1000)}
        ),
        "autoattack": Case(attacks.autoattack(), linf, {"pyautoattack": peer.autoattack("linf")}),
        "deepfool": Case(
            attacks.DeepFool(), None, {"foolbox": peer.foolbox("L2DeepFoolAttack", steps=50)}
        ),
        "ddn": Case(
            attacks.DDN(steps=100),
            None,
            {
                "adv-lib": peer.adv_lib("ddn", steps=100, levels=None),
                "foolbox": peer.foolbox("DDNAttack", steps=100),
            },
        ),
        "fmn_l2": Case(
            attacks.FMN(norm="l2", steps=100),
            None,
            {"adv-lib": peer.adv_lib("fmn", norm=2, steps=100)},
        ),
        "fmn_linf": Case(
            attacks.FMN(norm="linf", steps=100),
            None,
            {"adv-lib": peer.adv_lib("fmn", norm=float("inf"), steps=100, α_init=10)},
        ),
        "fmn_l1": Case(
            attacks.FMN(norm="l1", steps=100),
            None,
            {"adv-lib": peer.adv_lib("fmn", norm=1, steps=100)},
        ),
        "fmn_l0": Case(
            attacks.FMN(norm="l0"), None, {"adv-lib": peer.adv_lib("fmn", norm=0, steps=1000)}
        ),
        "sigma_zero": Case(
            attacks.SigmaZero(), None, {"adv-lib": peer.adv_lib("sigma_zero", num_steps=1000)}
        ),
        "pgd_l0_pixels": Case(attacks.PGD(norm="l0_pixels", steps=100, restarts=5), pixels, {}),
        "sparse_rs": Case(attacks.SparseRS(steps=1000), pixels, {}),
    }


def main(argv: list[str]) -> None:
    """Runs, prints and saves."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}: flags begin with --")
    known = cases(dict.fromkeys(_EPS, 1.0))
    chosen = _ATTACKS.value or list(known)
    for name in chosen:
        if name not in known:
            raise app.UsageError(f"--attacks has {name!r}; it may have {', '.join(known)}")
    environment.configure(flags.FLAGS.cpu_devices)
    compile_seconds = _count_compiling()
    target = _target()
    known = cases(target.eps)
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
                    _save(report | {"compile_seconds": sum(compile_seconds)})
            show("attacks", len(chosen), len(chosen))
    finally:  # what was measured is shown also where a peer failed
        _print(report)
        report["compile_seconds"] = sum(compile_seconds)
        report["peak_memory_mib"] = machine.peak_memory_mib()
        _save(report)


def _save(report: Mapping[str, Any]) -> None:
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(report, indent=2) + "\n")


def _count_compiling() -> list[float]:
    """A list to which every compilation adds its seconds."""
    seconds: list[float] = []

    def listen(event: str, duration: float, **_) -> None:
        if event.endswith("backend_compile_duration"):
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return seconds


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
    right = np.asarray(jax.numpy.argmax(classifier(images), axis=1)) == labels
    return Target(
        model,
        classifier,
        images[right],
        labels[right],
        {norm: eps[norm] if flag.value is None else flag.value for norm, flag in _EPS.items()},
        f"{name}, {model}: {right.sum()} of the first {len(images)} test images, classified right",
    )


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
    model, classifier, images, labels, *_ = target

    def ours(number: int):
        return attacks.run(
            case.attack, classifier, images[:number], labels[:number],
            key=jax.random.key(0), eps=case.eps, batch_size=_BATCH.value,
        ).images  # fmt: skip

    ours(min(len(images), _BATCH.value))
    start = time.perf_counter()
    found = ours(len(images))
    seconds = time.perf_counter() - start
    norm = case.attack.norm
    yield _row(name, "prunejax", norm, case.eps, classifier, images, labels, found, seconds)
    if not _PEERS.value:
        return

    import torch

    network = torch_networks.network_of(model, classifier.variables)
    network = network.eval().requires_grad_(False)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    y = torch.from_numpy(labels).long()
    for library, attack in case.peers.items():
        start = time.perf_counter()
        found = attack(network, x, y, case.eps)
        seconds = time.perf_counter() - start
        found = found.detach().permute(0, 2, 3, 1).numpy()
        yield _row(name, library, norm, case.eps, classifier, images, labels, found, seconds)


def _row(name, library, norm, eps, classifier, images, labels, found, seconds) -> dict[str, Any]:
    """What is worth what: measured alike for everyone, by our forward pass and our norms."""
    found = np.clip(found, 0, 1)
    distance = np.asarray(jax.jit(jax.vmap(norms.get(norm).distance))(found - images))
    success = np.asarray(jax.numpy.argmax(classifier(found), axis=1)) != labels
    if eps is not None:
        success &= distance <= eps * (1 + 1e-5) + 1e-6
    distance = np.where(success, distance, np.inf)
    return {
        "attack": name,
        "library": library,
        "norm": norm,
        "eps": eps,
        "examples": len(images),
        "robust": int(np.sum(~success)),
        "success": float(np.mean(success)),
        "median_distance": float(np.median(distance)),
        "mean_distance_of_found": float(np.mean(distance[success])) if success.any() else None,
        "seconds": seconds,
        "examples_per_second": len(images) / seconds,
    }


def _versions() -> dict[str, str]:
    names = ["prunejax", "jax", "jaxlib", "numpy"]
    if _PEERS.value:
        names += ["torch", "foolbox", "torchattacks", "adv-lib", "pyautoattack"]
    return {name: importlib.metadata.version(name) for name in names}


def _print(report: Mapping[str, Any]) -> None:
    table = Table(title=report["data"], caption="x: seconds of the library over ours")
    table.add_column("attack")
    table.add_column("library")
    for header in ("norm", "eps", "robust", "median", "mean", "seconds", "x"):
        table.add_column(header, justify="right")
    ours = {r["attack"]: r["seconds"] for r in report["measurements"] if r["library"] == "prunejax"}
    for row in report["measurements"]:
        mean = row["mean_distance_of_found"]
        table.add_row(
            row["attack"],
            row["library"],
            row["norm"],
            "" if row["eps"] is None else f"{row['eps']:g}",
            str(row["robust"]),
            f"{row['median_distance']:.4g}",
            "" if mean is None else f"{mean:.4g}",
            f"{row['seconds']:.1f}",
            f"{row['seconds'] / ours[row['attack']]:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    flags.adopt_module_key_flags(environment)
    app.run(main)
