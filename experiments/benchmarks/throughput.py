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

import dataclasses
import datetime
import functools
import importlib.metadata
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table

from experiments import environment, progress
from experiments.benchmarks import machine, timing, torch_networks
from prunejax import attacks, models
from prunejax.attacks import programs
from prunejax.canonical import canonical
from prunejax.classifier import Classifier, Network
from prunejax.data import Dataset
from prunejax.masks import dense
from prunejax.training import batches, loop, objectives
from prunejax.training.phase import Phase

ATTACK_STEPS = 20
ATTACK = attacks.PGD(norm="linf", steps=ATTACK_STEPS, loss="cross_entropy")
# So small that no prediction changes.
EPS = 1e-5
TRAINING_STEPS = 4
TRAINING_BATCH = 128
LEARNING_RATE, MOMENTUM = 1e-3, 0.9
NUM_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Case:
    """A network to be timed, its image shape and how many examples are attacked at a time."""

    network: str
    image_shape: tuple[int, int, int]
    attack_batch: int


CASES = (
    Case("strided_cnn", (28, 28, 1), 512),
    Case("lenet5", (28, 28, 1), 128),
    Case("resnet8", (32, 32, 3), 128),
)

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
    classifier = _classifier(case)
    meshes = _meshes()
    pgd = [candidate for mesh in meshes for candidate in _attacks(case, classifier, mesh)]
    training = [candidate for mesh in meshes for candidate in _trainings(case, classifier, mesh)]
    if _PEERS.value:
        pgd += _peer_attacks(case, classifier)
        training.append(_peer_training(case, classifier))
    return {"pgd": pgd, "training": training}


def _meshes() -> list[Mesh]:
    devices = jax.local_devices()
    return [batches.data_mesh(devices[:number]) for number in sorted({1, len(devices)})]


# Without the rewriting of convolutions that loops need, a step may be faster.
STEPS = ("step", "plain step")


def _name(what: str, mesh: Mesh) -> str:
    return f"{what}, {mesh.size} device{'s' * (mesh.size > 1)}"


# --- This library ---


def _classifier(case: Case) -> Classifier:
    """With no parameter at its initial 0 or 1, so that the copies for torch are really compared."""
    network = Network(models.create(case.network, num_classes=NUM_CLASSES))
    rng = np.random.default_rng(0)

    def vary(leaf):
        return jnp.asarray(
            leaf * rng.uniform(0.8, 1.2, leaf.shape) + rng.normal(0, 0.01, leaf.shape), "f4"
        )

    return Classifier(
        jax.tree.map(vary, network.init(jax.random.key(0), case.image_shape)), network
    )


def _images(case: Case, number: int) -> np.ndarray:
    return np.random.default_rng(1).random((number, *case.image_shape), np.float32)


def _attacked(case: Case, classifier: Classifier) -> tuple[np.ndarray, np.ndarray]:
    """Images and the classes that they are predicted as."""
    images = _images(case, case.attack_batch)
    return images, np.asarray(jnp.argmax(classifier(images), axis=-1), np.int32)


def _attacks(case: Case, classifier: Classifier, mesh: Mesh) -> list[timing.Candidate]:
    images, labels = _attacked(case, classifier)
    number = len(images)
    lane = NamedSharding(mesh, PartitionSpec("data"))
    attacked, inputs = attacks.as_attacked(ATTACK, classifier, images)
    replicated = jax.device_put(attacked, NamedSharding(mesh, PartitionSpec()))
    keys = jax.random.split(jax.random.key(0), number)
    init = jax.jit(jax.vmap(ATTACK.init, in_axes=(None, 0, 0, 0, 0)), out_shardings=lane)
    goals = attacks.Goal(label=jnp.asarray(labels))
    state = functools.partial(init, replicated, inputs, goals, keys, np.full(number, EPS, "f4"))

    advance = programs.of(ATTACK, mesh).advance

    def one_by_one(step):
        def steps(state):
            for _ in range(ATTACK_STEPS):
                state = step(replicated, state)
            return state

        return _precisely(_carried(steps, state()))

    def run():
        result = attacks.run(
            ATTACK, classifier, images, labels, key=jax.random.key(0), eps=EPS,
            batch_size=number, devices=list(mesh.devices.flat),
        )  # fmt: skip
        if result.success.any():
            raise RuntimeError("an example was finished early; the budget is not small enough")

    work = number * ATTACK_STEPS
    in_loop = _carried(lambda state: advance(replicated, state, ATTACK_STEPS)[0], state())
    return [
        timing.Candidate(_name("loop", mesh), work, _precisely(in_loop)),
        timing.Candidate(_name("step", mesh), work, one_by_one(_attack_step(mesh, canonical))),
        timing.Candidate(
            _name("plain step", mesh), work, one_by_one(_attack_step(mesh, lambda step: step))
        ),
        timing.Candidate(_name("run", mesh), work, run),
    ]


def _attack_step(mesh: Mesh, rewrite: Callable) -> Callable[[Classifier, Any], Any]:
    """One compiled step, with what keeps convolutions fast in loops or as anyone would write it."""
    one, lane = PartitionSpec(), PartitionSpec("data")
    step = rewrite(jax.vmap(ATTACK.step, in_axes=(None, 0)))
    sharded = jax.shard_map(step, mesh=mesh, in_specs=(one, lane), out_specs=lane, check_vma=False)
    return jax.jit(sharded, donate_argnums=1)


def _trainings(case: Case, classifier: Classifier, mesh: Mesh) -> list[timing.Candidate]:
    phase = Phase(
        name="train",
        epochs=1,
        objective=objectives.natural(),
        optimizer=lambda mask: optax.sgd(LEARNING_RATE, MOMENTUM),
    )
    mask = dense(classifier.params)
    draw = (0, 0)
    start = loop.Trained(classifier.variables, mask)
    everywhere = NamedSharding(mesh, PartitionSpec())
    dataset = _dataset(case)
    none = dataset.images[:0], dataset.labels[:0]
    begin = functools.partial(loop.begin, classifier.apply_fn, phase, start, None, none, draw=draw)
    state = jax.jit(begin, out_shardings=everywhere)
    order = np.arange(len(dataset)).reshape(TRAINING_STEPS, TRAINING_BATCH)
    epoch = batches.to_devices(dataset, order, mesh)
    single = [batches.to_devices(dataset, part[None], mesh) for part in order]

    run_steps = loop.compile_steps(classifier.apply_fn, phase, mask, draw, shift=0, flip=False)

    def one_by_one(state):
        for examples in single:
            state, _ = run_steps(state, examples)
        return state

    in_loop = _carried(lambda state: run_steps(state, epoch)[0], state())
    return [
        timing.Candidate(_name("loop", mesh), len(dataset), in_loop),
        timing.Candidate(_name("step", mesh), len(dataset), _carried(one_by_one, state())),
    ]


def _dataset(case: Case) -> Dataset:
    images = (255 * _images(case, TRAINING_STEPS * TRAINING_BATCH)).astype(np.uint8)
    labels = np.arange(len(images), dtype=np.int32) % NUM_CLASSES
    return Dataset(images, labels, tuple(map(str, range(NUM_CLASSES))), "random", "train")


def _carried(advance: Callable[[Any], Any], state: Any) -> Callable[[], None]:
    """Advances a state further at each call: its memory is donated, so it is used only once."""

    def call():
        nonlocal state
        state = jax.block_until_ready(advance(state))

    return call


def _precisely(call: Callable[[], None]) -> Callable[[], None]:
    """With the precision of `attacks.run`."""

    def wrapped():
        with jax.default_matmul_precision("highest"):
            call()

    return wrapped


# --- Its peers ---


def _peer_attacks(case: Case, classifier: Classifier) -> list[timing.Candidate]:
    import foolbox
    import torch
    import torchattacks

    images, labels = _attacked(case, classifier)
    network = (
        torch_networks.network_of(case.network, classifier.variables).eval().requires_grad_(False)
    )
    _check_same(classifier, network, images)
    labels = torch.tensor(labels, dtype=torch.long)
    step_size = EPS * 2.5 / ATTACK_STEPS
    network, images = min(
        _torch_formats(network, images),
        key=lambda pair: _seconds_of(lambda: _torch_pgd(*pair, labels, step_size)),
    )

    lib_foolbox = foolbox.attacks.LinfPGD(abs_stepsize=step_size, steps=ATTACK_STEPS)
    model_foolbox = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    lib_torchattacks = torchattacks.PGD(network, eps=EPS, alpha=step_size, steps=ATTACK_STEPS)
    calls = {
        "torch": lambda: _torch_pgd(network, images, labels, step_size),
        "foolbox": lambda: lib_foolbox(model_foolbox, images, labels, epsilons=EPS),
        "torchattacks": lambda: lib_torchattacks(images, labels),
    }
    work = len(images) * ATTACK_STEPS
    return [timing.Candidate(name, work, call) for name, call in calls.items()]


def _torch_pgd(network, images, labels, step_size: float):
    """The loop that everyone writes."""
    import torch

    x = (images + torch.empty_like(images).uniform_(-EPS, EPS)).clamp(0, 1)
    for _ in range(ATTACK_STEPS):
        x.requires_grad_()
        loss = torch.nn.functional.cross_entropy(network(x), labels, reduction="sum")
        (grad,) = torch.autograd.grad(loss, x)
        x = x.detach() + step_size * grad.sign()
        x = (images + (x - images).clamp(-EPS, EPS)).clamp(0, 1)
    return x


def _peer_training(case: Case, classifier: Classifier) -> timing.Candidate:
    import torch

    dataset = _dataset(case)
    labels = torch.from_numpy(dataset.labels).long().split(TRAINING_BATCH)

    def epoch_of(network, images):
        optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, MOMENTUM)
        parts = list(zip(images.split(TRAINING_BATCH), labels, strict=True))

        def epoch():
            for batch, label in parts:
                optimizer.zero_grad()
                logits = network(batch.float() / 255)
                torch.nn.functional.cross_entropy(logits, label).backward()
                optimizer.step()

        return epoch

    network = torch_networks.network_of(case.network, classifier.variables).train()
    epochs = [epoch_of(*pair) for pair in _torch_formats(network, dataset.images)]
    return timing.Candidate("torch", len(dataset), min(epochs, key=_seconds_of))


def _seconds_of(call: Callable[[], object]) -> float:
    call()
    return min(timing.elapsed(call) for _ in range(3))


def _torch_formats(network, images: np.ndarray) -> list[tuple[Any, Any]]:
    """The network and its images, channels first and channels last."""
    import copy

    import torch

    images = torch.from_numpy(images).permute(0, 3, 1, 2)
    formats = (torch.contiguous_format, torch.channels_last)
    return [
        (copy.deepcopy(network).to(memory_format=layout), images.contiguous(memory_format=layout))
        for layout in formats
    ]


def _check_same(classifier: Classifier, network, images: np.ndarray) -> None:
    import torch

    with torch.no_grad():
        theirs = network(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    difference = np.abs(np.asarray(classifier(images)) - theirs).max()
    if not difference < 1e-4:
        raise RuntimeError(f"the logits of the network in torch differ by {difference}")


# --- The report ---


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
        "attack": repr(ATTACK),
        "eps": EPS,
        "attack_batch": {case.network: case.attack_batch for case in CASES},
        "training_batch": TRAINING_BATCH,
        "training_steps": TRAINING_STEPS,
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
