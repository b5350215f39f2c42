"""FMN: the exact optimum of linear networks, and its schedules and radii against the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import attacks
from prunejax.attacks import fmn
from tests.attacks.test_closed_form import KEY, check_distances
from tests.linear_models import random_linear


@pytest.mark.parametrize(
    ("norm", "shape", "classes", "options", "bound"),
    [
        ("linf", (20,), 2, {}, 1.05),
        ("linf", (7, 5, 1), 5, {}, 1.05),
        ("l2", (32, 24, 3), 10, {}, 1.05),
        ("l2", (7, 5, 1), 3, {"targeted": True}, 1.05),
        ("l1", (7, 5, 1), 3, {"targeted": True}, 1.25),
        # In steps too short to reach the box, features that have moved keep better ones out.
        ("l0", (9, 8, 3), 3, {"alpha": 10.0}, 1.25),
        ("l0_pixels", (9, 8, 3), 3, {"alpha": 10.0}, 1.25),
    ],
)
def test_it_finds_the_nearest_point(norm, shape, classes, options, bound, linear_classifier):
    problem = random_linear(0, shape, classes)
    attack = attacks.FMN(norm=norm, steps=300, **options)
    check_distances(attack, linear_classifier(problem), problem, bound)


def test_heading_for_every_class_finds_the_nearest(linear_classifier):
    problem = random_linear(1, (7, 5, 1), classes=5)
    attack = attacks.FMN(steps=200, targets=4)
    check_distances(attack, linear_classifier(problem), problem, 1.05)


def test_alpha_and_gamma_follow_a_cosine():
    attack = attacks.FMN(norm="linf", steps=4)
    steps = np.arange(4)
    cosine = (1 + np.cos(np.pi * steps / 4)) / 2
    alpha = [attack.alpha_at(step) for step in steps]
    gamma = [attack.gamma_at(step) for step in steps]
    np.testing.assert_allclose(alpha, 0.1 + (10 - 0.1) * cosine, rtol=1e-6)
    np.testing.assert_allclose(gamma, 0.001 + (0.05 - 0.001) * cosine, rtol=1e-6)
    assert attacks.FMN(norm="l1").alpha_at(0) == 1


@pytest.mark.parametrize(
    ("adversarial", "best", "expected"),
    [
        (False, np.inf, 3.0),  # nothing seen yet: where the boundary is expected
        (True, 2.0, 1.8),  # smaller by gamma
        (True, 1.5, 1.5),  # the nearest is nearer than that
        (False, 1.5, 2.2),  # larger by gamma
    ],
)
def test_radius(adversarial, best, expected):
    eps = fmn.radius(2.0, 0.1, jnp.array(adversarial), jnp.array(best), 3.0)
    np.testing.assert_allclose(eps, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("eps", "adversarial", "best", "expected"),
    [
        (3, True, np.inf, 2),  # at least one less, or more
        (3, False, np.inf, 4),
        (59, True, 59, 53),  # floor(53.1)
        (59, False, 59, 64),  # floor(64.9)
        (59, True, 40, 40),
        (0, True, 0, 0),
    ],
)
def test_radius_in_l0(eps, adversarial, best, expected):
    assert fmn.radius_in_l0(jnp.float32(eps), 0.1, jnp.array(adversarial), best) == expected


def test_the_first_radius_is_where_the_boundary_is_expected(linear_classifier):
    """Entries that the box stops do not count: with them the boundary would seem nearer."""
    W, b, images, labels = problem = random_linear(2, (20,), classes=2)
    steepest = np.argmax(np.abs(W[1] - W[0]))
    images[:, steepest] = np.round(images[:, steepest])  # on the edge, here or there
    attack, classifier = attacks.FMN(norm="l1"), linear_classifier(problem)

    @jax.jit
    @jax.vmap
    def first(image, label):
        state = attack.init(classifier, image, attacks.Goal(label), KEY, jnp.inf)
        return attack.step(classifier, state).eps

    slope = (W[1] - W[0]) * np.where(labels == 0, 1, -1)[:, None]
    gap = np.abs(images @ (W[1] - W[0]) + b[1] - b[0])
    blocked = ((images == 1) & (slope > 0)) | ((images == 0) & (slope < 0))
    assert 0 < blocked[:, steepest].sum() < len(images)
    expected = gap / np.abs(np.where(blocked, 0, slope)).max(axis=1)
    np.testing.assert_allclose(first(images, labels), 1.001 * expected, rtol=1e-4)
