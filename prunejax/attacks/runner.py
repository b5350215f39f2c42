"""Drives any attack over any number of examples: everything that is not mathematics.

A fixed number of lanes, one example each, is advanced by compiled chunks of steps, all devices
sharing the lanes. An example that is finished leaves its lane to the next in the queue, so the
batch stays full, nothing is recompiled when examples drop out, and memory does not grow with the
number of examples. A further attempt at an example is one more entry in the queue.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from prunejax import norms, precision
from prunejax.attacks import programs
from prunejax.attacks.attack import Attack, as_attacked
from prunejax.attacks.diagnostics import Diagnostics, Doubt
from prunejax.attacks.inputs import Inputs
from prunejax.attacks.inspection import inspect
from prunejax.attacks.lanes import Lanes
from prunejax.classifier import Classifier

# Between two looks at which examples are finished: at least so many steps, and this share of all.
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
      forwards, backwards: passes through the classifier that the attack made for each example,
        those of all its attempts and none of the checks, nor the look at the clean image that tells
        whether to attack it and which classes to head for. One through an `expectation` takes all
        its draws.
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

    def doubts(self) -> list[Doubt]:
        """The same, with the numbers by which those of several runs are put together."""
        return self.diagnostics.doubts()


@precision.single()
def run(
    attack: Attack,
    classifier: Classifier,
    given: Inputs,
    progress: Callable[[int, int], None] | None = None,
) -> AttackResult:
    """`attacks.run` of one attack, from arguments that have been checked.

    A minimum-norm attack knows no budget, whatever is given. One of a cascade is told the examples
    that the others have left, with as many lanes as at first.
    """
    images, labels, number, mesh = given.images, given.labels, len(given.images), given.mesh
    eps = np.full_like(given.eps, np.inf) if attack.minimum_norm else given.eps
    # Arguments that always lie alike: another sharding would be another program.
    classifier, key = jax.device_put((classifier, given.key), NamedSharding(mesh, PartitionSpec()))
    attacked, inputs = as_attacked(attack, classifier, images)
    stages = attack.stages(inputs.shape[1:])
    lanes = Lanes(number, given.width, [stage.steps for stage in stages])
    compiled = programs.compiled(attack, mesh)
    attempts = attack.attempts(given.classes)
    chunk = max(CHUNK_STEPS, int(CHUNK_SHARE * attack.steps))

    success, distance = np.zeros(number, bool), np.full(number, np.inf, "f4")
    forwards, backwards = np.zeros(number, int), np.zeros(number, int)
    sizes = {name: np.zeros(number, np.float32) for name in norms.NORMS}
    diverged, outside, unconfirmed = 0, 0, 0

    def examples():
        of = np.maximum(lanes.example, 0)
        return inputs[of], labels[of], given.indices[of], lanes.attempt, eps[of]

    shapes = compiled.start.eval_shape(attacked, examples(), key)[0]
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    state, waiting = programs.blank(shapes, key, sharding), {}
    doubts = inspect(attack, classifier, images, labels, eps, width=given.width, mesh=mesh)
    result = AttackResult(images.copy(), success, distance, forwards, backwards, sizes, doubts)
    while lanes.busy or lanes.queue:
        # Until none leaves at once: lanes that begin together end together, and are settled so.
        while (filled := lanes.fill()).any():
            if lanes.stage:
                states = [waiting.pop(example) for example in lanes.example[filled]]
                state = programs.resumed(shapes, filled, states, sharding)
                continue
            state, clean = compiled.fill(attacked, examples(), key, state, filled)
            already = np.asarray(clean) & filled
            of = lanes.example[already]
            success[of], distance[of] = True, 0.0
            lanes.leave(already)
        steps = lanes.until_next_look(chunk)
        advance = programs.compiled(stages[lanes.stage].attack, mesh).advance
        state, *told = advance(attacked, state, steps)
        finished, taken = jax.device_get(told)
        lanes.advanced(steps, taken)
        leaving, going_on = lanes.ended(finished)
        if going_on.any():
            waiting.update(
                zip(lanes.example[going_on], programs.parked(state, going_on), strict=True)
            )
            lanes.go_on(going_on)
        if lanes.should_settle(leaving):
            of = np.maximum(lanes.example, 0)
            checked = jax.device_get(
                compiled.settle(attacked, state, images[of], labels[of], eps[of])
            )
            diverged += int(np.sum(checked.diverged & leaving))
            outside += int(np.sum(checked.outside & leaving))
            unconfirmed += int(np.sum(checked.unconfirmed & leaving))
            _take_over(result, checked, of, leaving)
            costs = _passes(attack, given.classes)
            for count, passes in zip((forwards, backwards), costs, strict=True):
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


def _take_over(
    result: AttackResult, checked: programs.Checked, of: np.ndarray, leaving: np.ndarray
) -> None:
    """Writes what lanes that leave have found over what is farther; `of` are their examples."""
    better = leaving & (checked.found.distance < result.distance[of])
    for whole, part in zip(result[:3], checked.found, strict=True):
        whole[of[better]] = part[better]
    for name, size in checked.sizes.items():
        result.sizes[name][of[better]] = size[better]


def _passes(attack: Attack, classes: int) -> list[Callable[[np.ndarray], np.ndarray]]:
    """Forward and backward passes of an attempt, as functions of the steps it took."""
    costs = zip(*attack.passes(classes), strict=True)
    return [lambda steps, c=cost: c[0] + c[1] * steps + c[2] for cost in costs]
