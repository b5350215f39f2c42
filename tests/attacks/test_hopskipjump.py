"""HopSkipJump: its schedule, its starts, its normals, and the optimum on linear networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import attacks
from prunejax.attacks import starts
from prunejax.attacks.goal import Goal
from tests.attacks.test_closed_form import KEY, assert_valid, check_distances, length, nearest_class
from tests.linear_models import random_linear


def test_queries_grow_with_the_root_of_the_step_and_are_as_many_as_stated():
    for steps, queries in ((64, 533), (7, 10), (1, 3)):
        attack = attacks.HopSkipJump(steps=steps, queries=queries)
        made = np.asarray(jax.vmap(attack.queries_at)(jnp.arange(steps)))
        until = queries * steps * (np.arange(1, steps + 1) / steps) ** 1.5
        assert made.sum() == steps * queries
        assert np.all(np.abs(np.cumsum(made) - until) <= 0.51)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_estimated_normal_points_along_the_gradient(norm):
    rng = np.random.default_rng(0)
    w = rng.normal(size=30).astype(np.float32)

    def classifier(images):
        score = (images.reshape(len(images), -1) - 0.5) @ w
        return jnp.stack([jnp.zeros_like(score), score], axis=1)

    attack = attacks.HopSkipJump(norm=norm, steps=1, queries=3000)
    image, x = jnp.full((6, 5), 0.45), jnp.full((6, 5), 0.5)  # on the boundary, far from the box
    goal = Goal(jnp.array(0), None, None)
    state = attack.init(classifier, image, goal, KEY, jnp.inf)._replace(x=x)
    v = np.asarray(jax.jit(lambda s: attack._normal(classifier, s))(state)).ravel()
    # n signs of projections on u average to w / ||w|| sqrt(2 / (pi d)), each with variance 1 / d.
    assert v @ w / np.linalg.norm(v) / np.linalg.norm(w) > 0.98


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_normal_of_thousands_of_features_is_found_from_as_near_as_bisection_comes(norm):
    """On the shortest way, where x is the farthest from the boundary that it can be."""
    shape = (64, 64, 3)
    w = np.random.default_rng(0).choice(np.float32([-1, 1]), size=shape)
    image, way = jnp.full(shape, 0.5), 0.1 * w  # which crosses the boundary at 0.9 of it

    def classifier(images):
        score = jnp.sum((images - image) * w, axis=(1, 2, 3)) - 0.09 * w.size
        return jnp.stack([jnp.zeros_like(score), score], axis=1)

    attack = attacks.HopSkipJump(norm=norm, steps=1, queries=1000)
    goal, nothing = Goal(jnp.array(0), None, None), attack.nothing_found(image)

    @jax.jit
    def normal():
        x = starts.pull_to_boundary(norm, classifier, image, goal, image + way, attack.halvings)
        state = attacks.HopSkipJumpState(image, goal, KEY, jnp.array(0), x, nothing)
        return attack._normal(classifier, state)

    v = np.asarray(normal())
    # On the boundary sqrt(2 n / (pi d)) = 0.23, of random vectors 1 / sqrt(d) = 0.01.
    assert np.sum(v * w) / np.linalg.norm(v) / np.linalg.norm(w) > 0.15


def test_noise_is_uniform_first_and_then_of_blocks():
    shape = (9, 6, 2)
    images = np.asarray(jax.vmap(lambda i: starts.noise(KEY, shape, i))(jnp.arange(2)))
    assert len(np.unique(images[0])) == images[0].size
    draw = jax.vmap(lambda key: starts.noise(key, shape, 1))
    images = np.asarray(draw(jax.random.split(KEY, 200)))
    assert np.all(np.isin(images, (0, 1)))
    halves = np.all(images[:, :4] == images[:, :1], axis=(1, 2, 3))
    assert 0.1 < halves.mean() < 0.9  # coarse ones and fine ones
    assert len(np.unique(images.reshape(200, -1), axis=0)) > 100


@pytest.mark.parametrize("norm", ["l2", "linf", "l1", "l0"])
def test_pulling_ends_where_the_way_crosses_the_boundary(norm):
    # The score is the sum of moved entries, and every entry moves by 0.1 to 0.8.
    image = jnp.zeros((4, 2))
    x = jnp.arange(1, 9).reshape(4, 2) / 10.0

    def classifier(images):
        return jnp.stack([jnp.full(len(images), 1.8), images.sum(axis=(1, 2))], axis=1)

    goal = Goal(jnp.array(0), None, None)
    point = starts.pull_to_boundary(norm, classifier, image, goal, x, 14)
    flat = np.asarray(point).ravel()
    moves = np.arange(1, 9) / 10
    wanted = {
        "l2": moves / 2,
        "linf": np.minimum(moves, 0.25),
        "l1": np.maximum(moves - 0.25, 0),
        "l0": np.where(moves > 0.55, moves, 0),
    }[norm]
    np.testing.assert_allclose(flat, wanted, atol=1e-3)
    assert flat.sum() > 1.8


def test_a_start_is_on_about_the_shortest_of_the_ways_tried():
    # Adversarial is what moves along a random w by more than 0.3 (and noise, if it goes so far).
    shape, tries = (4, 3), 60
    image = jnp.full(shape, 0.5)
    w = np.random.default_rng(0).normal(size=shape)
    w /= np.linalg.norm(w)

    def classifier(images):
        moved = jnp.sum((images - image) * w, axis=(1, 2))
        return jnp.stack([jnp.full(len(images), 0.3), moved], axis=1)

    goal = Goal(jnp.array(0), None, None)
    attack = attacks.HopSkipJump()
    found = starts.boundary_start(attack, classifier, image, goal, KEY, tries, 14)

    numbers = jnp.arange(tries)
    draw = jax.vmap(lambda number: starts.noise(jax.random.fold_in(KEY, number), shape, number))
    ways = np.asarray(draw(numbers) - image, np.float64)
    along = (ways * w).sum(axis=(1, 2))
    lengths = np.sqrt((ways**2).sum(axis=(1, 2)))
    crossings = np.where(along > 0.3, 0.3 * lengths / np.maximum(along, 1e-9), np.inf)
    assert found.success
    assert np.min(np.abs(crossings / found.distance - 1)) < 1e-3
    # At most so many tries went on along a way that had been right, the others to new ways.
    again = np.log(np.nanmax(lengths) / crossings.min()) / -np.log(starts.NEARER) + 2
    assert found.distance <= crossings[: tries - int(again)].min() / starts.NEARER * (1 + 1e-3)
    assert found.distance < np.median(crossings[np.isfinite(crossings)])


@pytest.mark.parametrize(
    ("norm", "shape", "classes"),
    [("l2", (20,), 2), pytest.param("linf", (7, 5, 1), 2, marks=pytest.mark.exhaustive)],
)
def test_reaches_the_optimum(norm, shape, classes, linear_classifier):
    attack = attacks.HopSkipJump(norm=norm, steps=30, queries=300)
    problem = random_linear(0, shape, classes)
    result = check_distances(attack, linear_classifier(problem), problem, 1.25)
    assert np.all(result.forwards == 50 + 16 + 30 * (300 + 11 + 16))
    assert np.all(result.backwards == 0)


def test_targeted_and_out_of_reach(linear_classifier):
    problem = random_linear(1, (6, 4, 3), classes=4)
    problem.bias[3] -= 100.0  # nothing is ever given this class
    logits = problem.images.reshape(8, -1) @ problem.weights.T + problem.bias
    problem = problem._replace(labels=logits.argmax(axis=1))
    targets, distances = nearest_class(problem, "l2")
    targets[:3] = 3
    attack = attacks.HopSkipJump(steps=20, queries=150, targeted=True)
    classifier = linear_classifier(problem)
    result = attacks.run(attack, classifier, problem.images, targets, key=KEY)
    assert_valid(result, problem, targets, "l2", targeted=True)
    assert np.array_equal(result.success, targets != 3)
    assert np.all(np.isinf(result.distance[:3]))
    assert np.all(result.forwards[:3] == 50 + 16)  # no step for what has no start
    assert np.all(result.distance[3:] <= 1.25 * distances[3:])
    assert np.all(length(result.images[3:] - problem.images[3:], "l2") > 0)
