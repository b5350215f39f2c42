"""Drives any attack over any number of examples: everything that is not mathematics.

A fixed number of lanes, one example each, is advanced by compiled chunks of steps, all devices
sharing the lanes. An example that is finished leaves its lane to the next in the queue, so the
batch stays full, nothing is recompiled when examples drop out, and memory does not grow with the
number of examples. A further attempt at an example is one more entry in the queue.
"""

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prunejax import norms
from prunejax.attacks import diagnostics
from prunejax.attacks.attack import Attack, Found, as_attacked
from prunejax.attacks.goal import Goal
from prunejax.canonical import canonical
from prunejax.classifier import Classifier

# Between two looks at which examples are finished: this many steps, or this share of all.
CHUNK_STEPS, CHUNK_SHARE = 10, 0.02
# Lanes are halved down to this many: fewer would cost another compilation and save little.
FEWEST_LANES = 16
# The budget may be exceeded by the rounding of float32 images, and by no more.
ROUNDING = 1e-6


class AttackResult(NamedTuple):
    """What an attack found, as numpy arrays with one entry an example.

    Attributes:
      images: the adversarial images in [0, 1]; the clean ones where nothing was found.
      success: whether they are adversarial, and within the budget where there is one.
      distance: from the clean images, in the attack's norm; 0 where the clean image is adversarial
        already, `inf` where nothing was found.
      sizes: of the perturbation in every norm, `{name: [N]}`, so that L0 is known in features and
        in pixels; 0 where nothing was found.
      forwards, backwards: passes through the network that the attack made for each example,
        those of all its attempts and none of the checks.
      diagnostics: reasons to doubt the result.
    """

    images: np.ndarray
    success: np.ndarray
    distance: np.ndarray
    forwards: np.ndarray
    backwards: np.ndarray
    sizes: dict[str, np.ndarray]
    diagnostics: diagnostics.Diagnostics

    def warnings(self) -> list[str]:
        """Reasons to doubt the result, a sentence each."""
        return self.diagnostics.warnings()


def run(
    attack: Attack,
    classifier: Classifier,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    key: jax.Array,
    eps: float | np.ndarray | None = None,
    indices: np.ndarray | None = None,
    batch_size: int = 256,
    shrink: bool = True,
    devices: Sequence[jax.Device] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AttackResult:
    """Attacks every example.

    An example that the classifier gets wrong already is not attacked: its distance is 0. Success is
    confirmed by a fresh forward pass on the returned image, within ball and box.

    Args:
      attack: which attack.
      classifier: maps images in [0, 1] to logits.
      images: `[N, ...]` float32 in [0, 1].
      labels: `[N]` integers: the true classes, or the classes to reach for a targeted attack.
      key: the key; each example's own is derived from it and from its index.
      eps: budget in the attack's norm, a number or `[N]`; needed by fixed-budget attacks. For
        minimum-norm attacks None.
      indices: `[N]` what identifies each example (its number in the test set, say), so that its
        random numbers do not depend on which others are attacked with it; default 0 to N - 1.
      batch_size: lanes at most.
      shrink: half of the lanes, and so on, where that is enough for all examples; False to
        compile nothing new for the few that other attacks have left.
      devices: to share the lanes; all local ones by default.
      progress: called with (examples done, examples in all) now and then.

    Returns:
      What was found, and reasons to doubt it.

    Raises:
      ValueError: an argument out of range; raised before anything is compiled.
    """
    images, labels, eps, classes = _validated(attack, classifier, images, labels, eps)
    number = len(images)
    indices = _validated_indices(indices, number)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; at least 1 lane is needed.")
    devices = jax.local_devices() if devices is None else devices
    if not len(devices):
        raise ValueError("devices is empty; at least 1 is needed, or None for all local ones.")
    mesh = Mesh(np.array(devices), ("data",))
    # Arguments that always lie alike: another sharding would be another program.
    classifier, key = jax.device_put((classifier, key), NamedSharding(mesh, PartitionSpec()))
    attacked, inputs = as_attacked(attack, classifier, images)
    lanes = _Lanes(number, lane_count(number if shrink else batch_size, batch_size, mesh.size))
    programs = _programs(attack, mesh)
    attempts = attack.attempts(classes)
    chunk = max(CHUNK_STEPS, int(CHUNK_SHARE * attack.steps))

    success, distance = np.zeros(number, bool), np.full(number, np.inf, "f4")
    forwards, backwards = np.zeros(number, int), np.zeros(number, int)
    sizes = {name: np.zeros(number, np.float32) for name in norms.NORMS}
    result = AttackResult(
        images.copy(), success, distance, forwards, backwards, sizes,
        _inspect(attack, classifier, images, labels, len(lanes.example)),
    )  # fmt: skip
    outside, unconfirmed = 0, 0
    with jax.default_matmul_precision("highest"):
        state = None
        while lanes.busy or lanes.queue:
            fresh = lanes.fill(attack.steps)
            if fresh.any():
                of = np.maximum(lanes.example, 0)
                examples = (inputs[of], labels[of], indices[of], lanes.attempt, eps[of])
                if state is None:
                    shapes = programs.start.eval_shape(attacked, examples, key)[0]
                    state = _blank(shapes, key, NamedSharding(mesh, PartitionSpec("data")))
                state, clean = programs.fill(attacked, examples, key, state, fresh)
                already = np.asarray(clean) & fresh
                success[of[already]], distance[of[already]] = True, 0.0
                lanes.leave(already)
            steps = min(chunk, lanes.shortest())
            state, finished, taken = programs.advance(attacked, state, steps)
            lanes.advanced(steps, np.asarray(taken))
            leaving = lanes.occupied & (np.asarray(finished) | (lanes.left <= 0))
            if lanes.should_settle(leaving):
                of = np.maximum(lanes.example, 0)
                checked = jax.device_get(
                    programs.settle(attacked, state, images[of], labels[of], eps[of])
                )
                outside += int(np.sum(checked.outside & leaving))
                unconfirmed += int(np.sum(checked.unconfirmed & leaving))
                better = leaving & (checked.found.distance < distance[of])
                for whole, part in zip(result[:3], checked.found, strict=True):
                    whole[of[better]] = part[better]
                for name, size in checked.sizes.items():
                    sizes[name][of[better]] = size[better]
                for count, passes in zip((forwards, backwards), _passes(attack), strict=True):
                    np.add.at(count, of[leaving], passes(lanes.taken[leaving]))
                again = leaving & (lanes.attempt + 1 < attempts)
                lanes.leave(leaving, again if attack.minimum_norm else again & ~success[of])
            if progress is not None:
                progress(number - lanes.remaining, number)
    return result._replace(
        diagnostics=result.diagnostics._replace(outside=outside, unconfirmed=unconfirmed)
    )


def _passes(attack: Attack) -> list[Callable[[np.ndarray], np.ndarray]]:
    """Forward and backward passes of an attempt, as functions of the steps it took."""
    costs = zip(attack.init_passes, attack.step_passes, attack.result_passes, strict=True)
    return [lambda steps, c=cost: c[0] + c[1] * steps + c[2] for cost in costs]


def _inspect(attack, classifier, images, labels, lanes) -> diagnostics.Diagnostics:
    """Looks at as many examples as there are lanes, so that one program serves all numbers."""
    of = np.arange(lanes) % len(images)
    return diagnostics.inspect(
        classifier,
        images[of],
        _wanted(attack, labels[of]),
        getattr(attack, "loss", None),
        aimed=attack.targeted or attack.targets > 0,
        number=min(lanes, len(images)),
    )


class _Lanes:
    """Which example each lane holds, and which are waiting. Plain bookkeeping on the host."""

    def __init__(self, number: int, width: int):
        self.queue = collections.deque((example, 0) for example in range(number))
        self.example = np.full(width, -1)
        self.attempt = np.zeros(width, np.int32)
        self.left = np.zeros(width, int)
        self.taken = np.zeros(width, int)

    @property
    def occupied(self) -> np.ndarray:
        return self.example >= 0

    @property
    def busy(self) -> bool:
        return bool(self.occupied.any())

    @property
    def remaining(self) -> int:
        return len(self.queue) + int(self.occupied.sum())

    def shortest(self) -> int:
        return int(self.left[self.occupied].min()) if self.busy else 0

    def fill(self, steps: int) -> np.ndarray:
        """Puts waiting examples into free lanes; returns which lanes are fresh."""
        fresh = np.zeros(len(self.example), bool)
        for lane in np.flatnonzero(~self.occupied)[: len(self.queue)]:
            self.example[lane], self.attempt[lane] = self.queue.popleft()
            self.left[lane], self.taken[lane], fresh[lane] = steps, 0, True
        return fresh

    def advanced(self, steps: int, taken: np.ndarray) -> None:
        """Counts steps: of the time that is left, and of those before a lane was finished."""
        self.left = self.left - steps
        self.taken = self.taken + taken

    def leave(self, which: np.ndarray, again: np.ndarray | None = None) -> None:
        """Frees lanes; those in `again` go back to the queue for one more attempt."""
        if again is not None:
            self.queue.extend(zip(self.example[again], self.attempt[again] + 1, strict=True))
        self.example = np.where(which, -1, self.example)

    def should_settle(self, leaving: np.ndarray) -> bool:
        """Not for a single lane: the finished ones wait until an eighth of the batch is done."""
        enough = leaving.sum() * 8 >= len(leaving) or leaving.sum() == self.occupied.sum()
        return bool(leaving.any()) and bool(enough or (self.left[self.occupied] <= 0).any())


class _Checked(NamedTuple):
    found: Found
    sizes: dict[str, jax.Array]
    outside: jax.Array
    unconfirmed: jax.Array


class _Programs(NamedTuple):
    start: Any  # never run by itself, only asked for shapes
    fill: Callable[..., Any]
    advance: Callable[..., Any]
    settle: Callable[..., Any]


@functools.cache
def _programs(attack: Attack, mesh: Mesh) -> _Programs:
    """The compiled parts, over lanes sharded along the mesh. Cached: equal attacks share them."""
    one, lane = PartitionSpec(), PartitionSpec("data")

    def sharded(function, in_specs, out_specs, **jit):
        return jax.jit(
            jax.shard_map(
                function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
            ),
            **jit,
        )

    def fill(classifier, examples, key, state, fresh):
        started, clean = canonical(_start(attack))(classifier, examples, key)
        return jax.tree.map(functools.partial(_select, fresh), started, state), clean

    def advance(classifier, state, steps):
        step, finished = jax.vmap(attack.step, in_axes=(None, 0)), jax.vmap(attack.finished)
        step = canonical(step)

        def body(_, carry):
            state, taken = carry
            return step(classifier, state), taken + ~finished(state)

        taken = jnp.zeros(finished(state).shape, jnp.int32)
        state, taken = jax.lax.fori_loop(0, steps, body, (state, taken))
        return state, finished(state), taken

    def settle(classifier, state, images, labels, eps):
        found = canonical(jax.vmap(attack.result, in_axes=(None, 0)))(classifier, state)
        x = jnp.clip(found.image, 0, 1)
        image = x.reshape(images.shape)
        distance = jax.vmap(norms.get(attack.norm).distance)(image - images)
        within = distance <= eps * (1 + ROUNDING) + ROUNDING
        inside = within & jnp.all(x == found.image, axis=tuple(range(1, x.ndim)))
        confirmed = _wanted(attack, labels).reached(canonical(_predict)(classifier, x))
        success = found.success & confirmed & within
        return _Checked(
            Found(_select(success, image, images), success, jnp.where(success, distance, jnp.inf)),
            sizes={n: jax.vmap(norm.distance)(image - images) for n, norm in norms.NORMS.items()},
            outside=found.success & ~inside,
            unconfirmed=found.success & ~confirmed,
        )

    return _Programs(
        start=jax.jit(_start(attack)),
        fill=sharded(fill, (one, lane, one, lane, lane), lane),
        advance=sharded(advance, (one, lane, one), lane, donate_argnums=1),
        settle=sharded(settle, (one, lane, lane, lane, lane), lane),
    )


def _predict(classifier: Classifier, images: jax.Array) -> jax.Array:
    return classifier(images)


def _select(which: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    return jnp.where(which.reshape(which.shape + (1,) * (new.ndim - 1)), new, old)


def _wanted(attack: Attack, labels: jax.Array) -> Goal:
    """What counts as success, whatever an attempt is heading for."""
    return Goal(None, labels) if attack.targeted else Goal(labels)


def _start(attack: Attack) -> Callable[..., Any]:
    """Runs `init` for a batch of examples, each with the key of its index and attempt.

    Returns states, and which clean images are what the attacker wants already.
    """

    def start(classifier, examples, key):
        def one(image, logits, label, index, attempt, eps):
            own_key = jax.random.fold_in(jax.random.fold_in(key, index), attempt)
            goal = attack.goal(logits, label, attempt)
            return attack.init(classifier, image, goal, own_key, eps), goal.reached(logits)

        images, labels, *others = examples
        return jax.vmap(one)(images, classifier(images), labels, *others)

    return start


def _blank(shapes: Any, key: jax.Array, sharding: NamedSharding) -> Any:
    """A state of these shapes with nothing in it, so that the first fill is like any other."""

    def blank(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(jnp.broadcast_to(key, leaf.shape), sharding)
        return jax.device_put(np.zeros(leaf.shape, leaf.dtype), sharding)

    return jax.tree.map(blank, shapes)


def lane_count(number: int, batch_size: int, devices: int) -> int:
    """`batch_size`, or a half of it, and so on, where that holds all examples.

    Few sizes, so that few programs are compiled.
    """
    lanes = batch_size
    while lanes // 2 >= max(number, devices, FEWEST_LANES):
        lanes //= 2
    return -(-lanes // devices) * devices


def _validated(attack, classifier, images, labels, eps):
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim < 2 or not np.issubdtype(images.dtype, np.floating):
        raise ValueError(
            f"images has shape {images.shape} and dtype {images.dtype}; "
            "a batch [N, ...] of floats in [0, 1] is needed (divide bytes by 255)."
        )
    if len(images) == 0 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels has shape {labels.shape} for images of shape {images.shape}; "
            "one label an image is needed, and at least one image."
        )
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"images lies in [{images.min()}, {images.max()}]; it must lie in [0, 1], "
            "normalisation belongs inside the classifier."
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(classifier):
        if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(np.asarray(leaf)).all():
            raise ValueError(
                f"classifier{jax.tree_util.keystr(path)} has NaN or infinite entries; "
                "a network that has diverged cannot be attacked, restore an earlier checkpoint."
            )
    logits = _shape_of_logits(classifier, images.shape[1:])
    if not hasattr(logits, "shape") or len(logits.shape) != 2 or logits.shape[0] != 2:
        raise ValueError(f"classifier returns {logits} for 2 images; logits [2, C] are needed.")
    classes = logits.shape[1]
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"labels are {labels.dtype} in [{labels.min()}, {labels.max()}]; "
            f"integers in [0, {classes - 1}] are needed, for the classifier has {classes} classes."
        )
    if attack.minimum_norm:
        if eps is not None:
            raise ValueError(
                f"eps is {eps}; {type(attack).__name__} looks for the minimum, pass None."
            )
        eps = np.inf
    elif eps is None:
        raise ValueError(f"eps is None; {type(attack).__name__} needs a budget in {attack.norm}.")
    budgets = np.asarray(eps)
    acceptable = np.issubdtype(budgets.dtype, np.number) and budgets.shape in ((), labels.shape)
    if not acceptable or not (budgets >= 0).all():
        raise ValueError(f"eps is {budgets}; a number >= 0 is needed, or one for each example.")
    if not (attack.minimum_norm or np.isfinite(budgets).all()):
        raise ValueError(f"eps is {budgets}; the budget of {type(attack).__name__} must be finite.")
    eps = budgets.astype(np.float32)
    return (
        images.astype(np.float32),
        labels.astype(np.int32),
        np.broadcast_to(eps, labels.shape).copy(),
        classes,
    )


def _shape_of_logits(classifier: Classifier, image_shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    try:
        # Of a jitted function, so that a network is traced once and not for every attack.
        return _logits.eval_shape(classifier, jax.ShapeDtypeStruct((2, *image_shape), jnp.float32))
    except Exception as error:  # whatever the network raises on such images
        raise ValueError(
            f"images has the shape {image_shape} without its first axis, which the classifier does "
            f"not take ({type(error).__name__}: {error}); give it what it was trained on."
        ) from error


@jax.jit
def _logits(classifier: Classifier, images: jax.Array) -> jax.Array:
    return classifier(images)


def _validated_indices(indices, number: int) -> np.ndarray:
    indices = np.arange(number) if indices is None else np.asarray(indices)
    if indices.shape != (number,) or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(
            f"indices has shape {indices.shape} and dtype {indices.dtype}; "
            f"integers of shape {(number,)} are needed, one an example."
        )
    return indices
