"""Brendel & Bethge: its step against general solvers, and the optimum on linear networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from prunejax import attacks
from prunejax.attacks.brendel_bethge import closest_in_region
from prunejax.classifier import Classifier
from tests.attacks.test_closed_form import KEY, check_distances
from tests.linear_models import random_linear

ORDERS = {"l2": 2, "l1": 1, "linf": np.inf}
SIZE = 5


def regions(number: int):
    """Images, points, hyperplanes that a part of the trust region reaches, and radii."""
    rng = np.random.default_rng(0)
    for _ in range(number):
        image, x, b = rng.uniform(size=SIZE), rng.uniform(size=SIZE), rng.normal(size=SIZE)
        r = rng.uniform(0.1, 0.5)
        within = np.clip(x + r * b / np.linalg.norm(b), 0, 1) - x
        c = rng.uniform(-0.5, 0.9) * (b @ within)
        yield tuple(np.float32(part) for part in (image, x, b, c, r))


def least(norm, image, x, b, c, r):
    """The smallest distance, from the box's many starts of a general solver."""
    image, x, b = (part.astype(float) for part in (image, x, b))
    # Split the perturbation, so that every norm is smooth: v = image + p - q, and t bounds Linf.
    p, q = slice(0, SIZE), slice(SIZE, 2 * SIZE)

    def v(z):
        return image + z[p] - z[q]

    objective = {
        "l2": lambda z: np.sum((z[p] - z[q]) ** 2),
        "l1": lambda z: np.sum(z[: 2 * SIZE]),
        "linf": lambda z: z[-1],
    }[norm]
    constraints = [
        lambda z: b @ (v(z) - x) - c,
        lambda z: r**2 - np.sum((v(z) - x) ** 2),
        v,
        lambda z: 1 - v(z),
    ]
    if norm == "linf":
        constraints.append(lambda z: z[-1] - z[p] - z[q])
    start = np.concatenate([np.maximum(x - image, 0), np.maximum(image - x, 0), [1.0]])
    found = optimize.minimize(
        objective,
        start,
        method="SLSQP",
        bounds=[(0, 2)] * len(start),
        constraints=[{"type": "ineq", "fun": each} for each in constraints],
        options={"maxiter": 1000, "ftol": 1e-9},
    )
    assert found.success
    return np.linalg.norm(v(found.x) - image, ORDERS[norm])


@pytest.mark.parametrize("norm", list(ORDERS))
def test_a_step_is_the_optimum_in_its_trust_region(norm):
    step = jax.jit(lambda *problem: closest_in_region(norm, *problem))
    for image, x, b, c, r in regions(12):
        v = np.asarray(step(image, x, b, c, r)).astype(float)
        assert np.all((v >= 0) & (v <= 1))
        assert b @ (v - x) >= c - 1e-4
        assert np.linalg.norm(v - x) <= r * (1 + 1e-4)
        distance = np.linalg.norm(v - image, ORDERS[norm])
        # The multipliers are bisected to 1.4 %.
        assert distance <= 1.015 * least(norm, image, x, b, c, r) + 1e-3


def test_a_hyperplane_out_of_reach_is_approached():
    image, x, b = np.full(4, 0.5, "f4"), np.full(4, 0.5, "f4"), np.float32([3, 4, 0, 0])
    v = closest_in_region("l2", image, x, b, np.float32(10), np.float32(0.1))
    np.testing.assert_allclose(v - x, [0.1 / np.sqrt(2)] * 2 + [0, 0], atol=1e-4)


@pytest.mark.parametrize(
    ("norm", "shape", "classes", "bound", "options"),
    [
        ("l2", (20,), 4, 1.05, {"targeted": True, "restarts": 3}),
        pytest.param("linf", (7, 5, 1), 2, 1.05, {}, marks=pytest.mark.exhaustive),
        pytest.param("l1", (20,), 3, 1.25, {"restarts": 3}, marks=pytest.mark.exhaustive),
        ("l0", (7, 5, 1), 2, 1.25, {"restarts": 3}),
        pytest.param("l0", (9, 8, 3), 2, 1.25, {}, marks=pytest.mark.exhaustive),
        pytest.param("l0_pixels", (9, 8, 3), 2, 1.25, {}, marks=pytest.mark.exhaustive),
    ],
)
def test_reaches_the_optimum(norm, shape, classes, bound, options, linear_classifier):
    attack = attacks.BrendelBethge(norm=norm, steps=300, **options)
    problem = random_linear(0, shape, classes)
    check_distances(attack, linear_classifier(problem), problem, bound)


@pytest.mark.parametrize(
    "norm",
    ["l2", *(pytest.param(norm, marks=pytest.mark.exhaustive) for norm in ("linf", "l1"))],
)
def test_no_iterate_comes_to_rest_beside_the_boundary_on_the_wrong_side(norm, linear_classifier):
    problem = random_linear(1, (7, 5, 1), classes=2, examples=12)
    attack = attacks.BrendelBethge(norm=norm, steps=300)
    check_distances(attack, linear_classifier(problem), problem, 1.01)


def test_an_example_without_a_start_is_not_found_and_stops_nobody():
    def logits(_, images):
        reachable = images[:, 0] > 0.5  # the first entry says which example it is
        score = jnp.where(reachable, images[:, 1:].mean(axis=1) - 0.6, -1.0)
        return jnp.stack([jnp.zeros_like(score), score], axis=1)

    images = np.full((2, 5), 0.4, np.float32)
    images[0, 0] = 1.0
    attack = attacks.BrendelBethge(norm="l2", steps=50)
    result = attacks.run(attack, Classifier(None, logits), images, np.zeros(2, int), key=KEY)
    assert result.success.all()  # noise finds the other half of the box as well
    nowhere = Classifier(None, lambda _, x: jnp.stack([x[:, 0] * 0 + 1, x[:, 0] * 0], axis=1))
    result = attacks.run(attack, nowhere, images, np.zeros(2, int), key=KEY)
    assert not result.success.any()
    assert np.all(np.isinf(result.distance))
    assert np.array_equal(result.images, images)
    assert np.all(result.forwards == 300 + 10 + 1)


@pytest.mark.parametrize("steps", [6, 10, 17, 100, 200])
def test_the_radius_is_halved_six_times_in_a_run_of_any_length(steps):
    attack = attacks.BrendelBethge(norm="l2", steps=steps)
    radii = [float(attack.radius_at(step, 100)) for step in range(-1, steps)]
    assert radii == sorted(radii, reverse=True)
    np.testing.assert_allclose(radii[-1], radii[0] / 2**6, rtol=1e-6)
