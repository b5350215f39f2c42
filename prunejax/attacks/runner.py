"""Drives any attack over any number of examples: everything that is not mathematics.

A fixed number of lanes, one example each, is advanced by compiled chunks of steps, all devices
sharing the lanes. An example that is finished leaves its lane to the next in the queue, so the
batch stays full, nothing is recompiled when examples drop out, and memory does not grow with the
number of examples. A further attempt at an example is one more entry in the queue.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prunejax import norms
from prunejax.attacks import programs
from prunejax.attacks.attack import Attack, as_attacked
from prunejax.attacks.diagnostics import Diagnostics
from prunejax.attacks.inputs import validated, validated_indices
from prunejax.attacks.inspection import inspect
from prunejax.attacks.lanes import Lanes, lane_count
from prunejax.classifier import Classifier

# Between two looks at which examples are finished: this many steps, or this share of all.
CHUNK_STEPS, CHUNK_SHARE = 10, 0.02


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
    diagnostics: Diagnostics

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
    images, labels, eps, classes = validated(attack, classifier, images, labels, eps)
    number = len(images)
    indices = validated_indices(indices, number)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; at least 1 lane is needed.")
    devices = jax.local_devices() if devices is None else devices
    if not len(devices):
        raise ValueError("devices is empty; at least 1 is needed, or None for all local ones.")
    mesh = Mesh(np.array(devices), ("data",))
    # Arguments that always lie alike: another sharding would be another program.
    classifier, key = jax.device_put((classifier, key), NamedSharding(mesh, PartitionSpec()))
    attacked, inputs = as_attacked(attack, classifier, images)
    lanes = Lanes(number, lane_count(number if shrink else batch_size, batch_size, mesh.size))
    compiled = programs.of(attack, mesh)
    attempts = attack.attempts(classes)
    chunk = max(CHUNK_STEPS, int(CHUNK_SHARE * attack.steps))

    success, distance = np.zeros(number, bool), np.full(number, np.inf, "f4")
    forwards, backwards = np.zeros(number, int), np.zeros(number, int)
    sizes = {name: np.zeros(number, np.float32) for name in norms.NORMS}
    diverged, outside, unconfirmed = 0, 0, 0
    with jax.default_matmul_precision("highest"):
        doubts = inspect(
            attack, classifier, images, labels, eps, width=len(lanes.example), mesh=mesh
        )
        result = AttackResult(images.copy(), success, distance, forwards, backwards, sizes, doubts)
        state = None
        while lanes.busy or lanes.queue:
            fresh = lanes.fill(attack.steps)
            if fresh.any():
                of = np.maximum(lanes.example, 0)
                examples = (inputs[of], labels[of], indices[of], lanes.attempt, eps[of])
                if state is None:
                    shapes = compiled.start.eval_shape(attacked, examples, key)[0]
                    state = programs.blank(shapes, key, NamedSharding(mesh, PartitionSpec("data")))
                state, clean = compiled.fill(attacked, examples, key, state, fresh)
                already = np.asarray(clean) & fresh
                success[of[already]], distance[of[already]] = True, 0.0
                lanes.leave(already)
            steps = min(chunk, lanes.shortest())
            state, finished, taken = compiled.advance(attacked, state, steps)
            lanes.advanced(steps, np.asarray(taken))
            leaving = lanes.occupied & (np.asarray(finished) | (lanes.left <= 0))
            if lanes.should_settle(leaving):
                of = np.maximum(lanes.example, 0)
                checked = jax.device_get(
                    compiled.settle(attacked, state, images[of], labels[of], eps[of])
                )
                diverged += int(np.sum(checked.diverged & leaving))
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
        diagnostics=doubts._replace(
            weaker=doubts.weaker & ~success,
            diverged=diverged,
            outside=outside,
            unconfirmed=unconfirmed,
        )
    )


def _passes(attack: Attack) -> list[Callable[[np.ndarray], np.ndarray]]:
    """Forward and backward passes of an attempt, as functions of the steps it took."""
    costs = zip(attack.init_passes, attack.step_passes, attack.result_passes, strict=True)
    return [lambda steps, c=cost: c[0] + c[1] * steps + c[2] for cost in costs]
