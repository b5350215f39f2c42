"""FAB: its projections by solvers, one step by hand, and the optimum on linear networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from prunejax import attacks, norms
from prunejax.attacks.goal import Goal
from prunejax.classifier import Classifier
from tests.attacks.test_closed_form import KEY, assert_valid, check_distances, length, nearest_class
from tests.linear_models import minimum_distance, random_linear

NORMS = ("linf", "l2", "l1")

reach = jax.jit(
    lambda norm, *args: jax.vmap(norms.get(norm).reach_hyperplane)(*args), static_argnums=0
)


# -- the projection --------------------------------------------------------------------------------


def shortest_by_solver(w, x, gap, norm):
    """min ||d|| with <w, d> = gap and x + d in the box; linear programming, SLSQP for l2."""
    size, box = len(w), list(zip(-x, 1 - x, strict=True))
    if norm == "linf":  # variables d, t
        eye, ones = np.eye(size), np.ones((size, 1))
        return optimize.linprog(
            np.append(np.zeros(size), 1),
            A_ub=np.block([[eye, -ones], [-eye, -ones]]),
            b_ub=np.zeros(2 * size),
            A_eq=np.append(w, 0)[None],
            b_eq=[gap],
            bounds=[*box, (0, None)],
        ).fun
    if norm == "l1":  # d = up - down
        return optimize.linprog(
            np.ones(2 * size),
            A_eq=np.append(w, -w)[None],
            b_eq=[gap],
            bounds=[*((0, high) for _, high in box), *((0, -low) for low, _ in box)],
        ).fun
    solution = optimize.minimize(
        lambda d: d @ d,
        np.zeros(size),
        jac=lambda d: 2 * d,
        bounds=box,
        constraints={"type": "eq", "fun": lambda d: w @ d - gap, "jac": lambda d: w},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 300},
    )
    assert solution.success
    return np.linalg.norm(solution.x)


def random_hyperplanes(seed, number, size):
    """Ties and zeros among slopes, points on edges of the box; gaps of both signs within reach."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(number, size))
    w = np.where(rng.uniform(size=w.shape) < 0.3, rng.choice([-1, 0, 0.5, 1], size=w.shape), w)
    x = rng.uniform(size=w.shape)
    x = np.where(rng.uniform(size=x.shape) < 0.3, np.round(x), x)
    w, x = w.astype(np.float32), x.astype(np.float32)
    most, least = furthest(w, x)
    share = rng.uniform(0.02, 0.98, size=number)
    gap = np.where(rng.uniform(size=number) < 0.5, share * most, share * least)
    return w, x, gap.astype(np.float32)


def furthest(w, x):
    """The largest and the smallest change of <w, x> that the box allows, in float64."""
    w, x = w.astype(np.float64), x.astype(np.float64)
    return np.maximum(w * (1 - x), -w * x).sum(1), np.minimum(w * (1 - x), -w * x).sum(1)


@pytest.mark.parametrize("norm", NORMS)
def test_the_projection_on_hyperplane_and_box_is_the_shortest_way(norm):
    w, x, gap = random_hyperplanes(0, 60, 6)
    d = np.asarray(reach(norm, w, x, gap), np.float64)
    assert np.all((x + d >= -1e-7) & (x + d <= 1 + 1e-7))
    np.testing.assert_allclose(np.sum(w * d, axis=1), gap, rtol=1e-5, atol=1e-6)
    shortest = [shortest_by_solver(*case, norm) for case in zip(w, x, gap, strict=True)]
    np.testing.assert_allclose(length(d, norm), shortest, rtol=2e-5, atol=1e-6)
    assert np.all(d[w == 0] == 0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_projection_does_not_depend_on_the_scale_of_the_gradient(norm, scale):
    w, x, gap = random_hyperplanes(1, 60, 6)
    scale = np.float32(2 ** np.round(np.log2(scale)))  # exact in floating point
    np.testing.assert_array_equal(
        reach(norm, scale * w, x, scale * gap), np.asarray(reach(norm, w, x, gap))
    )


@pytest.mark.parametrize("norm", NORMS)
def test_what_the_box_does_not_allow_ends_in_its_corner(norm):
    w, x, _ = random_hyperplanes(2, 60, 6)
    most, least = furthest(w, x)
    w[0] = 0
    for gap, corner in ((1.01 * most, w > 0), (1.01 * least, w < 0)):
        d = np.asarray(reach(norm, w, x, (gap + np.sign(gap)).astype(np.float32)))
        np.testing.assert_allclose(x + d, np.where(w == 0, x, corner), atol=1e-7)
    np.testing.assert_array_equal(reach(norm, w, x, np.zeros(60, np.float32)), np.zeros_like(x))


def test_units_are_not_moved_partly():
    with pytest.raises(ValueError, match="'l0'"):
        norms.get("l0").reach_hyperplane(np.ones(3), np.ones(3), 1.0)


# -- one step --------------------------------------------------------------------------------------

# z = (0, 2 v_1 + v_2 - 0.8, 3 v_1 - v_3 - 5): class 0 at the origin; the last is out of reach.
WEIGHTS = np.array([[0, 0, 0], [2, 1, 0], [3, 0, -1]], np.float32)
BIAS = np.array([0, -0.8, -5], np.float32)


def one_step(x, bias=BIAS, **options):
    def classifier(images):
        return images @ WEIGHTS.T + bias

    attack = attacks.FAB(norm="l2", **options)
    image = jnp.array([0.2, 0.0, 0.5])
    goal = Goal(jnp.array(0), None, classifier(image))
    state = attack.init(classifier, image, goal, KEY, jnp.inf)
    return jax.jit(lambda x: attack.step(classifier, state._replace(x=x)))(jnp.array(x))


MASKED = np.array([0, -0.8, -np.inf], np.float32)


@pytest.mark.parametrize("bias", [BIAS, MASKED], ids=["three", "masked"])
def test_a_step_is_the_published_one(bias):
    # f = 2 * 0.2 + 0 - 0.8 = -0.4 at the image; w = (2, 1, 0), so d0 = 0.4 / 5 * w = (.16, .08, 0).
    # At x = (0.1, 0.1, 0.5), f = -0.5 and d = (0.2, 0.1, 0): lengths 0.1 sqrt(5), 0.08 sqrt(5).
    d, d0 = np.array([0.2, 0.1, 0]), np.array([0.16, 0.08, 0])
    x, image = np.array([0.1, 0.1, 0.5]), np.array([0.2, 0, 0.5])
    for alpha_max, alpha in ((0.1, 0.1), (1.0, 5 / 9)):
        state = one_step([0.1, 0.1, 0.5], bias, alpha_max=alpha_max, eta=1.05, beta=0.9)
        end = (1 - alpha) * (x + 1.05 * d) + alpha * (image + 1.05 * d0)  # beyond the boundary
        assert state.found.success
        np.testing.assert_allclose(state.found.image, end, atol=4e-5)
        np.testing.assert_allclose(state.found.distance, np.linalg.norm(end - image), rtol=2e-4)
        np.testing.assert_allclose(state.x, image + 0.9 * (end - image), atol=4e-5)


def test_the_linearised_boundary_is_projected_on_from_both_sides():
    # f = 0.5 at x, so d = (-0.2, -0.1, 0) leads back; |d| : |d0| = 5 : 4.
    state = one_step([0.5, 0.3, 0.5], alpha_max=0.0, eta=1.0, beta=1.0)
    np.testing.assert_allclose(state.x, [0.3, 0.2, 0.5], atol=1e-6)


def test_an_iterate_on_the_boundary_does_not_stay_there():
    # 2 v_1 + v_2 = 0.8 exactly; any step onto the boundary would be lost to rounding.
    assert one_step([0.3, 0.2, 0.5], beta=1.0).found.success
    assert one_step([0.0, 0.8, 0.5], beta=1.0).found.success


# -- linear networks -------------------------------------------------------------------------------


def attacked(attack, classifier, problem, labels):
    result = attacks.run(attack, classifier, problem.images, labels, key=KEY, batch_size=8)
    assert result.success.all()
    assert_valid(result, problem, labels, attack.norm, targeted=attack.targeted)
    return result


@pytest.mark.parametrize(
    ("norm", "shape", "classes", "random_start"),
    [
        ("linf", (7, 5, 1), 10, False),
        ("l2", (20,), 3, True),
        ("l1", (20,), 2, False),
        pytest.param("l1", (32, 24, 3), 2, False, marks=pytest.mark.exhaustive),
    ],
)
def test_reaches_the_optimum(norm, shape, classes, random_start, linear_classifier):
    attack = attacks.FAB(norm=norm, targets=9, random_start=random_start)
    for seed in range(3):
        problem = random_linear(seed, shape, classes)
        result = check_distances(attack, linear_classifier(problem), problem, 1.05)
        assert np.all(result.forwards == (2 * 100 + random_start) * (classes - 1))
        assert np.all(result.backwards == (100 + random_start) * (classes - 1))


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_untargeted_chooses_the_boundary_that_is_nearest_without_the_box(norm, linear_classifier):
    # Slopes and dual norms by numpy; where the box does not change the order, that is the nearest.
    attack = attacks.FAB(norm=norm)
    problem = random_linear(0, (7, 5, 1), 10)
    W, b, images, labels = problem
    nearest, distances = nearest_class(problem, norm)
    logits = images.reshape(8, -1) @ W.T + b
    gaps = logits[np.arange(8), labels][:, None] - logits
    slopes = W[None] - W[labels][:, None]
    dual = np.linalg.norm(slopes, {"linf": 1, "l1": np.inf}[norm], axis=2)
    ratio = np.divide(gaps, dual, out=np.full_like(gaps, np.inf), where=dual > 0)
    first = np.argmin(ratio, axis=1)
    chosen = np.array(
        [
            minimum_distance(W, b, x, y, norm, k)
            for x, y, k in zip(images, labels, first, strict=True)
        ]
    )
    result = attacked(attack, linear_classifier(problem), problem, labels)
    assert np.all(result.distance >= distances * (1 - 1e-5))
    assert np.all(result.distance <= chosen * 1.05)
    assert np.all(result.distance[first == nearest] <= 1.05 * distances[first == nearest])
    assert np.mean(first == nearest) >= 0.5
    assert np.all(result.backwards == 9 * 100)


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (0.01, 100.0)])
def test_what_all_logits_have_in_common_changes_nothing(scale, offset):
    problem = random_linear(0, (7, 5, 1), classes=4)

    def network(variables, images):
        logits = images.reshape(len(images), -1) @ variables["W"].T + variables["b"]
        return scale * logits + offset

    classifier = Classifier({"W": problem.weights, "b": problem.bias}, network)
    attack = attacks.FAB(norm="l2", targets=3)
    result = attacks.run(attack, classifier, problem.images, problem.labels, key=KEY)
    _, distances = nearest_class(problem, "l2")
    assert np.all(result.distance <= 1.03 * distances)


def test_reaches_a_given_class(linear_classifier):
    attack = attacks.FAB(norm="l2", targeted=True)
    problem = random_linear(1, (7, 5, 1), 10)
    targets, distances = nearest_class(problem, "l2")
    result = attacked(attack, linear_classifier(problem), problem, targets)
    assert np.all(result.distance >= distances * (1 - 1e-5))
    assert np.all(result.distance <= distances * 1.05)


def test_random_starts_lie_within_half_the_distance_to_the_boundary(linear_classifier):
    problem = random_linear(2, (20,), 2)
    classifier = linear_classifier(problem)
    attack = attacks.FAB(norm="l2", random_start=True)
    _, distances = nearest_class(problem, "l2")

    def start(key):
        image = jnp.asarray(problem.images[0])
        goal = Goal(problem.labels[0], None, classifier(image[None])[0])
        return attack.init(classifier, image, goal, key, jnp.inf).x

    keys = jax.random.split(KEY, 50)
    starts = np.asarray(jax.jit(jax.vmap(start))(keys)).astype(np.float64)
    lengths = length(starts - problem.images[0], "l2")
    assert len(np.unique(lengths)) == 50
    assert np.all((lengths <= distances[0] / 2 * (1 + 1e-5)) & (lengths > 0.25 * distances[0]))
