"""Retraction: how far back a known perturbation of a linear network can be projected."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import attacks
from prunejax.attacks.retraction import Retracting
from prunejax.classifier import Classifier
from tests.attacks.test_closed_form import KEY, assert_valid, length
from tests.linear_models import LinearProblem, random_linear

HALVINGS = 8


class CornerState(NamedTuple):
    image: jax.Array
    goal: attacks.Goal
    x: jax.Array
    found: attacks.Found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corner(Retracting):
    """Finds the corner of the box where the other of two linear classes is likeliest."""

    steps: int = 1
    supported: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1", "l0", "l0_pixels")
    minimum_norm: ClassVar[bool] = True
    draws: ClassVar[bool] = False

    def init(self, classifier, image, goal, key, eps):
        slope = jax.grad(lambda x: jnp.diff(classifier(x[None])[0])[0])(image)
        x = jnp.where(jnp.where(goal.label == 0, slope, -slope) > 0, 1.0, 0.0)
        return CornerState(image, goal, x, self.nothing_found(image))

    def step(self, classifier, state):
        return state

    def finished(self, state):
        return jnp.array(True)


def off_the_edges(problem: LinearProblem) -> LinearProblem:
    """No two ways to the edge of the box are equally long, so that L0 has no ties."""
    images = np.random.default_rng(0).uniform(size=problem.images.shape).astype(np.float32)
    logits = images.reshape(len(images), -1) @ problem.weights.T + problem.bias
    return problem._replace(images=images, labels=logits.argmax(axis=1))


def projected(delta: np.ndarray, norm: str, budget: float) -> np.ndarray:
    """The point of the ball nearest to `delta` `[H, W, C]`, in float64; the box changes nothing."""
    size = np.abs(delta)
    if norm == "linf":
        return np.clip(delta, -budget, budget)
    if norm == "l2":
        return delta * min(1, budget / np.sqrt((size**2).sum()))
    if norm == "l1":
        low, high = 0.0, size.max()
        for _ in range(60):
            cut = (low + high) / 2
            low, high = (cut, high) if np.maximum(size - cut, 0).sum() > budget else (low, cut)
        return np.sign(delta) * np.maximum(size - high, 0)
    weight = (size**2).sum(axis=-1, keepdims=True) if norm == "l0_pixels" else size**2
    kept = np.sort(weight.ravel())[::-1][: int(budget)]
    return np.where(weight >= kept.min(), delta, 0) if kept.size else np.zeros_like(delta)


@pytest.mark.parametrize("norm", Corner.supported)
def test_it_ends_where_the_projection_crosses_the_boundary(norm, linear_classifier):
    problem = off_the_edges(random_linear(3, (5, 4, 3), classes=2))
    attack = Corner(norm=norm, retractions=HALVINGS)
    result = attacks.run(attack, linear_classifier(problem), *problem[2:], key=KEY)
    assert result.success.all()
    assert_valid(result, problem, problem.labels, norm)
    W = problem.weights.astype(np.float64)
    for image, label, distance in zip(*problem[2:], result.distance, strict=True):
        slope = (W[1 - label] - W[label]).reshape(image.shape)
        x = image.astype(np.float64)
        needed = (problem.bias[label] - problem.bias[1 - label]) - (slope * x).sum()
        corner = np.where(slope > 0, 1 - x, -x)
        far = length(corner[None], norm)[0]
        low, high = 0.0, far
        for _ in range(40):
            half = (low + high) / 2
            over = (slope * projected(corner, norm, half)).sum() > needed
            low, high = (low, half) if over else (half, high)
        nearest = np.floor(high + 1e-6) if norm.startswith("l0") else high
        assert nearest * (1 - 1e-5) <= distance <= nearest * (1 + 1e-5) + far / 2**HALVINGS


def test_without_retractions_it_stays_where_it_was_found(linear_classifier):
    problem = random_linear(3, (5, 4, 3), classes=2)
    attack = Corner(norm="l1", retractions=0)
    result = attacks.run(attack, linear_classifier(problem), *problem[2:], key=KEY)
    slope = (problem.weights[1] - problem.weights[0]).reshape(5, 4, 3)
    up = np.where(problem.labels[:, None, None, None] == 0, slope, -slope) > 0
    np.testing.assert_array_equal(result.images, up.astype(np.float32))


def test_what_was_not_found_stays_so():
    never = Classifier(
        None, lambda _, x: jnp.stack([jnp.sum(x, (1, 2, 3)) + 1, 0 * x[:, 0, 0, 0]], 1)
    )
    images = np.full((2, 3, 3, 1), 0.25, np.float32)
    result = attacks.run(Corner(norm="l2"), never, images, np.zeros(2, int), key=KEY)
    assert not result.success.any()
    np.testing.assert_array_equal(result.images, images)


@pytest.mark.parametrize("attack", [attacks.DDN, attacks.FMN, attacks.SigmaZero])
def test_each_halving_is_a_forward_pass(attack, linear_classifier):
    problem = random_linear(1, (3, 4), classes=3)
    result = [
        attacks.run(
            attack(steps=6, retractions=number), linear_classifier(problem), *problem[2:], key=KEY
        )
        for number in (0, 4)
    ]
    np.testing.assert_array_equal(result[1].forwards - result[0].forwards, 4)
    np.testing.assert_array_equal(result[1].backwards, result[0].backwards)
    assert (result[1].distance <= result[0].distance).all()


def test_a_negative_number_is_refused():
    with pytest.raises(ValueError, match="retractions is -1"):
        attacks.DDN(retractions=-1)
