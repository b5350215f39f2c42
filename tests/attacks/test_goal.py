"""Goals: what counts as success, and which classes an attack heads for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import attacks
from prunejax.attacks import Goal
from prunejax.classifier import Classifier

LOGITS = jnp.array([1.0, 4.0, 3.0, 2.0])


@pytest.mark.parametrize(
    ("goal", "reached", "source", "rival"),
    [
        (Goal(label=1), False, 1, 2),
        (Goal(label=2), True, 2, 1),
        (Goal(target=1), True, 2, 1),
        (Goal(target=3), False, 1, 3),
        (Goal(label=1, target=3), False, 1, 3),
        (Goal(label=0, target=3), True, 0, 3),  # class 1 is not the target, but the label is left
    ],
)
def test_what_is_wanted(goal, reached, source, rival):
    goal = jax.tree.map(jnp.asarray, goal)
    assert goal.reached(LOGITS) == reached
    assert goal.source(LOGITS) == source
    assert goal.rival(LOGITS) == rival


def test_targets_are_the_likeliest_other_classes_in_turn():
    attack = attacks.PGD(targets=2, restarts=3)
    assert attack.attempts(classes=4) == 6
    aims = [attack.goal(LOGITS, jnp.int32(2), attempt) for attempt in range(6)]
    assert [int(aim.target) for aim in aims] == [1, 3] * 3
    assert all(aim.label == 2 for aim in aims)


def test_no_more_targets_than_other_classes():
    attack = attacks.PGD(targets=9)
    assert attack.attempts(classes=4) == 3
    assert {int(attack.goal(LOGITS, jnp.int32(1), k).target) for k in range(3)} == {0, 2, 3}


def _three_corners(_, images):
    """Class 1 far up the first axis, class 2 a little up the second one, class 0 elsewhere.

    At the clean image (0, 0) class 1 is the runner-up, but out of reach within 0.3.
    """
    x, y = images[:, 0], images[:, 1]
    return jnp.stack([jnp.zeros_like(x), x - 0.5, 4 * y - 1], axis=1)


def test_a_target_that_is_no_runner_up_is_tried_too():
    images, labels = np.zeros((1, 2), np.float32), np.array([0])
    classifier = Classifier(None, _three_corners)
    steps = {"steps": 5, "random_start": False, "norm": "l1", "relative_step": 1.0}
    run = {"key": jax.random.key(0), "eps": 0.3}
    # The gradient of the margin points to the runner-up alone.
    untargeted = attacks.run(attacks.PGD(**steps), classifier, images, labels, **run)
    assert not untargeted.success.any()
    aimed = attacks.run(attacks.PGD(**steps, targets=2), classifier, images, labels, **run)
    assert aimed.success.all()
    np.testing.assert_allclose(aimed.images, [[0, 0.3]], atol=1e-6)


def test_targets_of_a_targeted_attack_are_refused():
    with pytest.raises(ValueError, match=r"targets is 2 in a targeted attack"):
        attacks.PGD(targeted=True, targets=2)
