"""What `throughput` times of this library: PGD and training, in compiled loops and out of them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.benchmarks import timing
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


def classifier_of(case: Case) -> Classifier:
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


def attacked_images(case: Case, classifier: Classifier) -> tuple[np.ndarray, np.ndarray]:
    """Images and the classes that they are predicted as."""
    images = _images(case, case.attack_batch)
    return images, np.asarray(jnp.argmax(classifier(images), axis=-1), np.int32)


def attack_candidates(case: Case, classifier: Classifier, mesh: Mesh) -> list[timing.Candidate]:
    """PGD in the loop, step by step (convolutions rewritten or not), and as `attacks.run`."""
    images, labels = attacked_images(case, classifier)
    number = len(images)
    lane = NamedSharding(mesh, PartitionSpec("data"))
    attacked, inputs = attacks.as_attacked(ATTACK, classifier, images)
    replicated = jax.device_put(attacked, NamedSharding(mesh, PartitionSpec()))
    keys = jax.random.split(jax.random.key(0), number)
    init = jax.jit(jax.vmap(ATTACK.init, in_axes=(None, 0, 0, 0, 0)), out_shardings=lane)
    goals = attacks.Goal(label=jnp.asarray(labels))
    state = functools.partial(init, replicated, inputs, goals, keys, np.full(number, EPS, "f4"))

    advance = programs.compiled(ATTACK, mesh).advance

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


def training_candidates(case: Case, classifier: Classifier, mesh: Mesh) -> list[timing.Candidate]:
    """Natural training in the loop and step by step."""
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
    dataset = training_set(case)
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


def training_set(case: Case) -> Dataset:
    """Random images, as many as all steps of an epoch need."""
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


def _name(what: str, mesh: Mesh) -> str:
    return f"{what}, {mesh.size} device{'s' * (mesh.size > 1)}"
