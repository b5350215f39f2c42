"""PDPGD: the optimum of linear networks, its multipliers and its proximal operator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import attacks
from prunejax.attacks import pdpgd
from prunejax.classifier import Classifier
from tests.attacks.test_closed_form import KEY, check_distances
from tests.linear_models import random_linear


@pytest.mark.parametrize(
    ("shape", "classes", "targeted"),
    [((20,), 2, False), ((7, 5, 1), 3, True), ((32, 24, 3), 3, False)],
)
def test_it_finds_the_nearest_point(shape, classes, targeted, linear_classifier):
    problem = random_linear(0, shape, classes)
    attack = attacks.PDPGD(targeted=targeted)
    check_distances(attack, linear_classifier(problem), problem, 1.25)


def test_the_margin_weighs_more_until_the_boundary_is_crossed():
    """On a line: the logarithm of the ratio moves by theta, which falls to a tenth."""
    classifier = Classifier(
        (np.float32([[0, 8]]), np.float32([0, -5.6])), lambda v, images: images @ v[0] + v[1]
    )
    attack = attacks.PDPGD(steps=21)
    step, goal = jax.jit(attack.step), attacks.Goal(jnp.int32(0))
    state = attack.init(classifier, jnp.array([0.5]), goal, KEY, jnp.inf)
    log_ratio, weights = np.log(100), np.array([1, 100]) / 101
    np.testing.assert_allclose(state.weights, weights, rtol=1e-5)
    signs = []
    for number in range(21):
        crossed = 0.5 + float(state.delta[0]) > 0.7
        signs.append(crossed)
        log_ratio += (0.1 - 0.09 * number / 20) * (-1 if crossed else 1)
        now = np.array([1, np.exp(log_ratio)]) / (1 + np.exp(log_ratio))
        weights = 0.9 * weights + 0.1 * now
        state = step(classifier, state)
        np.testing.assert_allclose(state.log_ratio, log_ratio, rtol=1e-5)
        np.testing.assert_allclose(state.weights, weights, rtol=1e-4)
    assert set(signs) == {True, False}
    assert state.found.success


def test_the_proximal_operator_is_the_soft_threshold_where_the_metric_is_one():
    delta = jnp.array([0.5, -0.5, 0.1, -0.05, 0.3, -0.4])
    low, high = -jnp.array([1, 1, 1, 1, 1, 0.15]), jnp.array([1, 1, 1, 1, 0.1, 1])
    z = pdpgd.proximal(delta, jnp.full(6, 2.0), jnp.array(0.2), low, high)
    np.testing.assert_allclose(z, [0.4, -0.4, 0, 0, 0.1, -0.15], atol=1e-6)


def test_the_proximal_operator_follows_the_metric():
    """Each of its iterations lowers the objective, down to near the minimum of a grid search."""
    metric, delta, weight = np.array([1.0, 0.5]), np.array([0.5, -0.6]), 0.1
    z = pdpgd.proximal(jnp.array(delta), jnp.array(metric), jnp.array(weight), -1.0, 1.0)
    grid = np.linspace(-1, 1, 2001)
    least = [
        grid[np.argmin(weight * np.abs(grid) + h * (grid - d) ** 2 / 2)]
        for h, d in zip(metric, delta, strict=True)
    ]
    np.testing.assert_allclose(z, least, atol=0.02)
