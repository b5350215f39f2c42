"""DDN: the exact optimum of linear networks, its sphere and its rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import attacks
from prunejax.classifier import Classifier
from tests.attacks.test_closed_form import KEY, check_distances
from tests.linear_models import random_linear


@pytest.mark.parametrize(
    ("shape", "classes", "targeted"),
    [((7, 5, 1), 3, True), ((32, 24, 3), 3, False)],
)
def test_it_finds_the_nearest_point(shape, classes, targeted, linear_classifier):
    problem = random_linear(0, shape, classes)
    attack = attacks.DDN(steps=200, targeted=targeted)
    check_distances(attack, linear_classifier(problem), problem, 1.05)


def test_heading_for_every_class_finds_the_nearest(linear_classifier):
    problem = random_linear(1, (7, 5, 1), classes=5)
    attack = attacks.DDN(steps=200, targets=4)
    check_distances(attack, linear_classifier(problem), problem, 1.05)


def iterates(attack, classifier, image, goal, steps: int):
    """The states of the first steps, for one example."""
    step = jax.jit(attack.step)
    states = [attack.init(classifier, image, goal, KEY, jnp.inf)]
    for _ in range(steps):
        states.append(step(classifier, states[-1]))
    return states


def test_steps_by_hand(linear_classifier):
    """In the middle of a large box, so that nothing is clipped; two classes, so a fixed direction.

    On such a line every iterate lies eps along the normal, and eps only tells the predictions.
    """
    W = np.array([[0.3, -0.4], [0.0, 0.0]], np.float32)
    b = np.array([0.15 * 0.3 + 0.05 * 1.0, 0.0], np.float32)
    image = np.array([0.5, 0.5], np.float32)
    classifier = Classifier({"W": W, "b": b}, lambda v, x: x @ v["W"].T + v["b"])
    normal = np.array([-0.6, 0.8])
    distance = (W[0] @ image + b[0]) / 0.5
    attack = attacks.DDN(init_eps=0.1, gamma=0.1)
    states = iterates(attack, classifier, image, attacks.Goal(jnp.int32(0)), 8)
    eps, x = 0.1, image
    for state in states[1:]:
        eps *= 0.9 if np.linalg.norm(x - image) > distance else 1.1
        x = image + eps * normal
        np.testing.assert_allclose(state.eps, eps, rtol=1e-5)
        np.testing.assert_allclose(state.x, x, atol=1e-6)
    assert states[-1].found.success
    assert {bool(s.eps > t.eps) for s, t in zip(states[1:], states[:-1], strict=True)} == {
        True,
        False,
    }


def test_alpha_follows_a_cosine():
    attack, steps = attacks.DDN(steps=4), np.arange(4)
    alpha = [attack.alpha_at(step) for step in steps]
    np.testing.assert_allclose(alpha, 0.01 + 0.99 * (1 + np.cos(np.pi * steps / 4)) / 2, rtol=1e-6)


def test_without_a_gradient_it_goes_in_a_random_direction():
    classifier = Classifier(None, lambda _, images: jnp.zeros((len(images), 3)) * jnp.sum(images))
    image = np.full((5, 4), 0.5, np.float32)
    states = iterates(attacks.DDN(init_eps=0.1), classifier, image, attacks.Goal(jnp.int32(0)), 2)
    assert np.isclose(np.linalg.norm(states[1].x - image), 0.105)
    assert not np.allclose(states[1].x - image, states[2].x - image, atol=0.01)


def test_with_a_gradient_its_key_changes_nothing(linear_classifier):
    """Which is why it refuses restarts."""
    problem = random_linear(0, (20,), 3)
    one, other = (
        attacks.run(
            attacks.DDN(steps=30), linear_classifier(problem), problem.images, problem.labels,
            key=jax.random.key(seed),
        )
        for seed in (0, 1)
    )  # fmt: skip
    assert np.all(one.success)
    assert np.array_equal(one.images, other.images)


def test_rounding_keeps_grey_levels():
    """A result has as many levels as asked for: it is as near as that grid allows in a plane."""
    W, b = np.array([[1.0, 0.0], [0.0, 0.0]], np.float32), np.array([-0.45, 0.0], np.float32)
    classifier = Classifier({"W": W, "b": b}, lambda v, x: x @ v["W"].T + v["b"])
    images = np.array([[1.0, 0.2], [0.8, 0.6]], np.float32)
    attack = attacks.DDN(steps=50, levels=6)
    result = attacks.run(attack, classifier, images, np.zeros(2, int), key=KEY)
    np.testing.assert_allclose(result.images, [[0.4, 0.2], [0.4, 0.6]], atol=1e-6)
