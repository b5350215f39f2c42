"""Projections, maximisers and directions against solvers, enumeration and optimality conditions."""

import functools
import itertools

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from prunejax import norms
from tests.linear_models import minimum_distances, random_linear

SMALL = (2, 1, 2)  # two pixels of two channels: four features, few enough to enumerate
SHAPES = [(7, 5, 1), (32, 24, 3)]
NAMES = ["linf", "l2", "l1", "l0", "l0_pixels"]
CONVEX = ["linf", "l2", "l1"]
COUNTED = ["l0", "l0_pixels"]

# One compilation for each norm, function and shape; norms are static arguments.
project = jax.jit(lambda norm, *args: norm.project(*args), static_argnums=0)
maximizer = jax.jit(lambda norm, *args: norm.maximizer(*args), static_argnums=0)
direction = jax.jit(lambda norm, *args: norm.direction(*args), static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def batched(norm, vectors, images, eps):
    """What a norm makes of a batch with one budget an example: one compilation a shape."""
    return {
        "project": jax.vmap(norm.project)(vectors, images, eps),
        "maximizer": jax.vmap(norm.maximizer)(vectors, images, eps),
        "direction": jax.vmap(norm.direction)(vectors, images),
    }


# -- plain numpy answers ---------------------------------------------------------------------------


def measure(delta, name):
    delta = np.asarray(delta, np.float64)
    if name == "l0_pixels" and delta.ndim == 3:
        return np.count_nonzero(np.any(delta != 0, axis=-1))
    if name in COUNTED:
        return np.count_nonzero(delta)
    return np.linalg.norm(delta.ravel(), ord={"linf": np.inf, "l2": 2, "l1": 1}[name])


def assert_feasible(delta, image, eps, name):
    delta, image = np.asarray(delta), np.asarray(image)
    slack = 0 if name in COUNTED else 1e-6 * eps * (1 + np.log2(delta.size))
    assert measure(delta, name) <= eps + slack
    assert np.all(image + delta >= -1e-7)
    assert np.all(image + delta <= 1 + 1e-7)


def random_feasible(rng, image, eps, name, count):
    """Points of ball and box, many of them on the surface or in corners."""
    shape = (count, *image.shape)
    points = np.where(
        rng.uniform(size=shape) < 0.3,
        rng.integers(0, 2, size=shape) - image,
        rng.uniform(size=shape) - image,
    )
    if name in COUNTED:
        flat = points.reshape(count, -1, image.shape[-1] if name == "l0_pixels" else 1)
        ranks = rng.uniform(size=flat.shape[:2]).argsort(axis=1).argsort(axis=1)
        return np.where((ranks < np.floor(eps))[:, :, None], flat, 0.0).reshape(shape)
    if name == "linf":
        return np.clip(points, -eps, eps)
    lengths = np.array([measure(point, name) for point in points])
    shrink = np.minimum(1.0, eps / np.maximum(lengths, 1e-30))
    return points * shrink.reshape(-1, *[1] * image.ndim)


def linear_maximum(vector, image, eps, name):
    """max <vector, d> over ball and box by linear programming, SLSQP or enumeration."""
    g, x = np.asarray(vector, np.float64), np.asarray(image, np.float64)
    if name in COUNTED:
        channels = g.shape[-1] if name == "l0_pixels" else 1
        gains = np.maximum(g * (1 - x), -g * x).reshape(-1, channels).sum(axis=1)
        size = min(int(eps), len(gains))
        return max(
            gains[list(units)].sum() for units in itertools.combinations(range(len(gains)), size)
        )
    g, x = g.ravel(), x.ravel()
    if name == "linf":
        bounds = [(max(-eps, -xi), min(eps, 1 - xi)) for xi in x]
        return -optimize.linprog(-g, bounds=bounds).fun
    if name == "l1":  # d = up - down
        bounds = [*((0, 1 - xi) for xi in x), *((0, xi) for xi in x)]
        ones = np.ones((1, 2 * g.size))
        return -optimize.linprog(np.append(-g, g), A_ub=ones, b_ub=[eps], bounds=bounds).fun
    solution = optimize.minimize(
        lambda d: -g @ d,
        np.zeros_like(g),
        jac=lambda d: -g,
        bounds=list(zip(-x, 1 - x, strict=True)),
        constraints={"type": "ineq", "fun": lambda d: eps**2 - d @ d, "jac": lambda d: -2 * d},
        method="SLSQP",
        options={"ftol": 1e-13, "maxiter": 500},
    )
    # A point of the ball that SLSQP reached: a lower bound on the maximum, tight when it converged.
    point = solution.x * min(1.0, eps / max(np.linalg.norm(solution.x), 1e-30))
    return g @ np.clip(point, -x, 1 - x)


def closest_by_enumeration(delta, image, eps, name):
    """Smallest squared distance from delta to the box with at most floor(eps) units moved."""
    delta, image = np.asarray(delta, np.float64), np.asarray(image, np.float64)
    channels = delta.shape[-1] if name == "l0_pixels" else 1
    moved = (delta - np.clip(delta, -image, 1 - image)).reshape(-1, channels)
    left = delta.reshape(-1, channels)
    return min(
        sum(np.sum((moved if i in units else left)[i] ** 2) for i in range(len(left)))
        for units in itertools.combinations(range(len(left)), min(int(eps), len(left)))
    )


# -- what hypothesis draws -------------------------------------------------------------------------

# Subnormal numbers, which XLA flushes to zero on some backends, are not asked for.
pixel_values = st.one_of(
    st.sampled_from([0.0, 0.5, 1.0]),
    st.floats(0, 1, width=32).map(lambda v: v if v > 1e-30 else 0.0),
)
images = hnp.arrays(np.float32, SMALL, elements=pixel_values, fill=st.nothing())
entries = st.one_of(
    st.sampled_from([0.0, -0.25, 0.5, 3.0]),  # ties and zeros
    st.floats(-2, 2, width=32).map(lambda v: v if abs(v) > 1e-6 else 0.0),
)
vectors = hnp.arrays(np.float32, SMALL, elements=entries, fill=st.nothing())
budgets = st.one_of(st.sampled_from([0.0, 0.5, 1.0, 2.0, 4.0]), st.floats(2**-7, 4.5, width=32))
names = pytest.mark.parametrize("name", NAMES)
few = settings(max_examples=40, deadline=None, derandomize=True)


# -- projection ------------------------------------------------------------------------------------


@names
@few
@given(delta=vectors, image=images, eps=budgets, seed=st.integers(0, 2**16))
def test_projection_is_feasible_idempotent_and_no_feasible_point_is_closer(
    name, delta, image, eps, seed
):
    norm = norms.get(name)
    result = np.asarray(project(norm, delta, image, eps))
    assert_feasible(result, image, eps, name)
    np.testing.assert_allclose(project(norm, result, image, eps), result, atol=1e-6)
    others = random_feasible(np.random.default_rng(seed), image, eps, name, 200)
    distances = np.sum((others - delta) ** 2, axis=(1, 2, 3))
    assert np.sum((result.astype(np.float64) - delta) ** 2) <= distances.min() + 1e-5


@pytest.mark.parametrize("name", CONVEX)
@few
@given(delta=vectors, image=images, eps=budgets)
def test_convex_projection_satisfies_the_variational_inequality(name, delta, image, eps):
    # p is the projection exactly if <delta - p, d - p> <= 0 for every feasible d.
    result = np.asarray(project(norms.get(name), delta, image, eps), np.float64)
    normal = delta - result
    assert linear_maximum(normal, image, eps, name) <= np.sum(normal * result) + 2e-5


@pytest.mark.parametrize("name", COUNTED)
def test_counted_projection_is_the_best_of_all_subsets(name):
    rng = np.random.default_rng(0)
    for _ in range(300):
        image = rng.uniform(size=SMALL).astype(np.float32)
        delta = rng.choice([1, 0.3, 10], size=SMALL) * rng.normal(size=SMALL)
        delta, eps = delta.astype(np.float32), rng.choice([0.5, 1.0, 1.7, 2.0, 3.0])
        result = np.asarray(project(norms.get(name), delta, image, eps), np.float64)
        squared = np.sum((result - delta) ** 2)
        best = closest_by_enumeration(delta, image, eps, name)
        assert squared == pytest.approx(best, rel=1e-5, abs=1e-6)


@names
@few
@given(image=images, eps=budgets, seed=st.integers(0, 2**16))
def test_a_feasible_perturbation_is_returned_bit_for_bit(name, image, eps, seed):
    delta = random_feasible(np.random.default_rng(seed), image, eps, name, 1)[0]
    delta = (delta * 0.999).astype(np.float32)
    result = project(norms.get(name), delta, image, eps)
    np.testing.assert_array_equal(result, delta)


def test_projection_of_a_length_within_rounding_of_the_budget_stays_put():
    rng = np.random.default_rng(0)
    image = np.zeros(SMALL, np.float32)
    for name in ("l2", "l1"):
        norm = norms.get(name)
        for _ in range(200):
            delta = rng.uniform(0, 0.9, size=SMALL).astype(np.float32)
            delta[0, 0, 0] = 0.0
            length = np.float32(measure(delta, name))
            for eps in (np.nextafter(length, np.float32(0)), length, length * np.float32(1 - 3e-7)):
                np.testing.assert_allclose(project(norm, delta, image, eps), delta, atol=1e-6)


@names
def test_an_infinite_budget_leaves_the_box_and_invisible_entries_count(name):
    norm, image = norms.get(name), np.full(SMALL, 0.25, np.float32)
    delta = np.array([1.0, -1.0, 0.1, 0.0], np.float32).reshape(SMALL)
    clipped = np.clip(delta, -image, 1 - image)
    np.testing.assert_array_equal(project(norm, delta, image, np.inf), clipped)
    corner = np.array([0.75, -0.25, 0.75, 0.0], np.float32).reshape(SMALL)
    np.testing.assert_array_equal(maximizer(norm, delta, image, np.inf), corner)
    tiny = delta * np.float32(1e-30)  # squares underflow
    np.testing.assert_array_equal(project(norm, tiny, image, 3.0), tiny)


def test_equal_gains_are_kept_in_the_order_of_the_index():
    image = np.full((6,), 0.5, np.float32)
    delta = np.array([0.1, -0.2, 0.2, 0.3, 0.2, -0.2], np.float32)
    for eps, kept in [(1, [3]), (2, [1, 3]), (3.9, [1, 2, 3]), (4, [1, 2, 3, 4])]:
        for result in (
            project(norms.get("l0"), delta, image, float(eps)),
            maximizer(norms.get("l0"), delta, image, float(eps)),
        ):
            np.testing.assert_array_equal(np.flatnonzero(result), kept)


@pytest.mark.parametrize("shape", SHAPES)
def test_l2_and_l1_projections_of_images_have_one_multiplier(shape):
    # The optimality conditions at sizes where nothing can be enumerated.
    rng = np.random.default_rng(0)
    image = rng.uniform(size=(4, *shape)).astype(np.float32)
    delta = rng.normal(size=image.shape).astype(np.float32)
    for name, share in [("l2", 0.3), ("l1", 0.1)]:
        clipped = np.clip(delta, -image, 1 - image)
        eps = np.array([share * measure(d, name) for d in clipped], np.float32)
        results = np.asarray(batched(norms.get(name), delta, image, eps)["project"])
        for d, p, c, e in zip(delta, results, clipped, eps, strict=True):
            assert measure(p, name) == pytest.approx(e, rel=1e-5)
            assert np.all(p * d >= 0)
            free = (p != 0) & (np.abs(p) < np.abs(c) * (1 - 1e-5))
            stopped, size, want = ~free & (p != 0), np.abs(p), np.abs(d)
            assert free.any()
            if name == "l2":  # free entries scaled by one factor, stopped ones would go further
                factor = np.median(size[free] / want[free])
                np.testing.assert_allclose(size[free], factor * want[free], rtol=1e-5)
                assert np.all(size[stopped] <= factor * want[stopped] * (1 + 1e-5))
            else:  # free entries lowered by one amount, zeros lie below it
                amount = np.median(want[free] - size[free])
                np.testing.assert_allclose(want[free] - size[free], amount, atol=1e-5)
                assert np.all(want[p == 0] <= amount + 1e-5)
                assert np.all(want[stopped] - size[stopped] >= amount - 1e-5)


def test_projection_of_vectors_of_any_scale_is_finite_and_uses_the_budget():
    image = np.array([0.5, 0.5, 0.2, 1.0], np.float32)
    shape = np.array([1.0, -0.5, 0.1, -2.0], np.float32)
    for name in CONVEX:
        norm = norms.get(name)
        for scale in (1e-20, 1e-3, 1e10, 1e30):
            for eps in (1e-24, 1e-2):
                delta = scale * shape
                result = np.asarray(project(norm, delta, image, eps))
                expected = min(eps, measure(np.clip(delta, -image, 1 - image), name))
                assert measure(result, name) == pytest.approx(expected, rel=1e-5, abs=0)


# -- maximizer -------------------------------------------------------------------------------------


@names
@few
@given(grad=vectors, image=images, eps=budgets, seed=st.integers(0, 2**16))
def test_maximizer_reaches_the_exact_maximum(name, grad, image, eps, seed):
    result = np.asarray(maximizer(norms.get(name), grad, image, eps), np.float64)
    assert_feasible(result, image, eps, name)
    assert np.all(result[grad == 0] == 0)
    value = np.sum(grad * result)
    # SLSQP itself is the less exact side in l2; the exact distances below make up for it.
    assert value == pytest.approx(linear_maximum(grad, image, eps, name), abs=1e-4, rel=1e-5)
    others = random_feasible(np.random.default_rng(seed), image, eps, name, 200)
    assert value >= np.sum(others * grad, axis=(1, 2, 3)).max() - 1e-5


@names
@pytest.mark.parametrize("shape", SHAPES)
def test_maximizer_just_closes_the_gap_of_a_linear_classifier(name, shape):
    # At the exact minimum distance the best step reaches the decision boundary, no sooner. The
    # distance comes from an implementation that shares nothing with this one.
    norm, problem = norms.get(name), random_linear(3, shape, classes=2, examples=4)
    W, b = problem.weights.astype(np.float64), problem.bias.astype(np.float64)
    distances = minimum_distances(problem, name)
    slopes = (W[1 - problem.labels] - W[problem.labels]).reshape(problem.images.shape)
    logits = problem.images.reshape(4, -1) @ W.T + b
    gaps = np.abs(logits[:, 0] - logits[:, 1])
    grads = slopes.astype(np.float32)
    gained = [
        np.sum(
            slopes * np.asarray(batched(norm, grads, problem.images, budget)["maximizer"]),
            axis=tuple(range(1, slopes.ndim)),
        )
        for budget in (distances.astype(np.float32), (distances - 1).astype(np.float32))
    ]
    if name in COUNTED:  # that many units are enough, one fewer is not
        assert np.all(gained[0] >= gaps - 1e-5)
        assert np.all(gained[1] < gaps)
    else:
        np.testing.assert_allclose(gained[0], gaps, rtol=1e-5)


def test_l1_budget_goes_to_the_steepest_entries_and_ties_share_it():
    norm, image = norms.get("l1"), np.array([0.9, 0.5, 0.5, 0.0], np.float32)
    grad = np.array([3.0, -2.0, 2.0, 1.0], np.float32)
    result = np.asarray(maximizer(norm, grad, image, 0.6))
    np.testing.assert_allclose(result, [0.1, -0.25, 0.25, 0.0], atol=1e-6)
    result = np.asarray(maximizer(norm, grad, image, 1.3))
    np.testing.assert_allclose(result, [0.1, -0.5, 0.5, 0.2], atol=1e-6)


# -- direction -------------------------------------------------------------------------------------

UNIT = {"linf": "linf", "l2": "l2", "l1": "l1", "l0": "l1", "l0_pixels": "l1"}


@names
@few
@given(grad=vectors, exponent=st.integers(-37, 30))
def test_direction_has_unit_length_at_every_scale_and_ascends(name, grad, exponent):
    image = np.full(SMALL, 0.5, np.float32)
    grad = (grad * np.float64(10.0) ** exponent).astype(np.float32)
    grad = np.where(np.abs(grad) < 1.2e-38, np.float32(0), grad)  # subnormal numbers may be flushed
    result = np.asarray(direction(norms.get(name), grad, image))
    if not grad.any():
        np.testing.assert_array_equal(result, np.zeros_like(result))
        return
    assert measure(result, UNIT[name]) == pytest.approx(1.0, rel=1e-5)
    assert np.all(result * np.sign(grad) >= 0)
    assert np.any(result != 0)
    if name != "linf" and name != "l1":
        scaled = grad.astype(np.float64) / measure(grad, UNIT[name])
        np.testing.assert_allclose(result, scaled, atol=1e-6)
    if name == "linf":
        np.testing.assert_array_equal(result, np.sign(grad))


@names
def test_direction_of_zero_and_subnormal_gradients_is_finite(name):
    norm, image = norms.get(name), np.full(SMALL, 0.5, np.float32)
    zero = direction(norm, np.zeros(SMALL, np.float32), image)
    np.testing.assert_array_equal(zero, np.zeros(SMALL))
    for scale in (1e-44, 1e-40, 1e-38):
        result = np.asarray(direction(norm, np.full(SMALL, scale, np.float32), image))
        assert np.all(np.isfinite(result))
        assert measure(result, UNIT[name]) == pytest.approx(1.0, rel=1e-5) or np.all(result < 1e-37)


def test_l1_direction_takes_the_top_percent_of_the_entries_that_can_move():
    rng = np.random.default_rng(0)
    grad = rng.normal(size=(20, 15, 1)).astype(np.float32)
    point = rng.uniform(0.1, 0.9, size=grad.shape).astype(np.float32)
    order = np.argsort(-np.abs(grad).ravel())
    # The steepest, the third and the lower half are at the edge they point to: 148 can move.
    blocked = np.append(order[[0, 2]], order[150:])
    point.ravel()[blocked] = np.sign(grad).ravel()[blocked] > 0
    harmless = order[1]  # the second is at the edge it points away from
    point.ravel()[harmless] = np.sign(grad).ravel()[harmless] < 0
    result = np.asarray(direction(norms.get("l1"), grad, point)).ravel()

    free = np.delete(np.arange(300), blocked)
    steep = np.abs(grad).ravel()[free] >= np.quantile(np.abs(grad).ravel()[free], 0.99)
    expected = np.zeros(300)
    expected[free[steep]] = np.sign(grad).ravel()[free[steep]] / steep.sum()
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    assert set(np.flatnonzero(result)) == set(order[[1, 3]])

    everywhere_stopped = (grad > 0).astype(np.float32)
    stuck = direction(norms.get("l1"), grad, everywhere_stopped)
    np.testing.assert_array_equal(stuck, np.zeros_like(grad))


# -- batches with a budget an example, random starts -----------------------------------------------


@names
@pytest.mark.parametrize("shape", SHAPES)
def test_batches_with_one_budget_an_example_stay_feasible_and_zero_means_zero(name, shape):
    rng = np.random.default_rng(1)
    image = rng.uniform(size=(4, *shape)).astype(np.float32)
    vector = rng.normal(size=image.shape).astype(np.float32)
    eps = {
        "linf": [0.0, 0.03, 0.3, 1.0],
        "l2": [0.0, 0.1, 1.0, 100.0],
        "l1": [0.0, 0.5, 5.0, 5000.0],
        "l0": [0.0, 1.0, 3.5, 5000.0],
        "l0_pixels": [0.0, 1.0, 3.5, 5000.0],
    }[name]
    eps = np.array(eps, np.float32)
    norm = norms.get(name)
    results = batched(norm, vector, image, eps)
    for function in ("project", "maximizer"):
        result = np.asarray(results[function])
        np.testing.assert_array_equal(result[0], np.zeros(shape))
        for d, x, e in zip(result, image, eps, strict=True):
            assert_feasible(d, x, e, name)
        lengths = [measure(d, name) for d in result]
        np.testing.assert_allclose(jax.vmap(norm.distance)(result), lengths, rtol=1e-5)
    # The largest budget leaves only the box.
    np.testing.assert_array_equal(results["project"][3], np.clip(vector, -image, 1 - image)[3])
    corner = np.where(vector > 0, 1 - image, -image)
    np.testing.assert_array_equal(results["maximizer"][3], corner[3])
    # An example's result does not depend on its place in the batch.
    turned = batched(norm, vector[::-1], image[::-1], eps[::-1])
    for function, result in turned.items():
        np.testing.assert_array_equal(result[::-1], results[function])


@names
def test_random_starts_are_feasible_and_fill_the_ball(name):
    norm, count = norms.get(name), 4000
    start = jax.jit(jax.vmap(norm.random_start))
    keys = jax.random.split(jax.random.key(0), count)
    rng = np.random.default_rng(0)
    image = rng.uniform(size=(count, *SMALL)).astype(np.float32)
    eps = rng.choice([0.0, 0.2, 1.0, 2.0], size=count).astype(np.float32)
    starts = np.asarray(start(keys, image, eps))
    np.testing.assert_array_equal(starts[eps == 0], np.zeros_like(starts[eps == 0]))
    for d, x, e in zip(starts, image, eps, strict=True):
        assert_feasible(d, x, e, name)
    assert len(np.unique(starts[eps == 1], axis=0)) == np.sum(eps == 1)
    if name in COUNTED:  # as many units as allowed
        lengths = np.array([measure(d, name) for d in starts])
        np.testing.assert_array_equal(lengths, np.floor(eps))
        return
    # Far from the box the share of starts within radius r is (r / eps) ^ d, and signs are even.
    image, eps = np.full_like(image, 0.5), np.full_like(eps, 0.4)
    starts = np.asarray(start(keys, image, eps))
    radii = np.array([measure(d, name) for d in starts]) / 0.4
    for radius in (0.5, 0.7, 0.9):  # 4 standard deviations are 0.032
        assert np.mean(radii <= radius) == pytest.approx(radius**4, abs=0.032)
    signs = starts.reshape(count, 4) > 0
    np.testing.assert_allclose(signs.mean(axis=0), 0.5, atol=0.032)
    assert np.mean(signs[:, 0] == signs[:, 3]) == pytest.approx(0.5, abs=0.032)


# -- distance, dual, names -------------------------------------------------------------------------


def test_a_pixel_counts_once_and_is_an_entry_where_there_are_no_channels():
    delta = np.zeros((2, 3, 3), np.float32)
    delta[0, 0] = [0.1, -0.1, 0.2]
    delta[1, 2, 1] = 1e-6
    assert float(norms.get("l0").distance(delta)) == 4
    assert float(norms.get("l0_pixels").distance(delta)) == 2
    assert float(norms.get("l0_pixels").distance(delta[0])) == 3  # rank 2
    assert float(norms.get("l0_pixels").distance(delta.ravel())) == 4
    assert norms.get("l0").distance(delta).dtype == jnp.float32


@names
@few
@given(grad=vectors)
def test_dual_distance_is_the_best_gain_of_a_unit_budget(name, grad):
    # In the middle of the box and with a tiny budget the box plays no role; l0 units move by 1/2.
    norm, image = norms.get(name), np.full(SMALL, 0.5, np.float32)
    budget, unit = (1.0, 0.5) if name in COUNTED else (0.1, 0.1)
    gain = np.sum(grad * np.asarray(maximizer(norm, grad, image, budget)), dtype=np.float64)
    assert unit * float(norm.dual_distance(grad)) == pytest.approx(gain, rel=1e-5, abs=1e-6)
    if name != "l0_pixels":
        assert float(norm.dual_distance(grad)) == float(norms.get(norm.dual).distance(grad))


def test_get_knows_its_names_and_suggests_the_nearest():
    assert [norms.get(name).name for name in norms.NORMS] == NAMES
    with pytest.raises(ValueError, match=r"norm 'l0_pixel'.*'l0_pixels'.*l0, l0_pixels, l1, l2"):
        norms.get("l0_pixel")
    with pytest.raises(ValueError, match="Did you mean 'linf'"):
        norms.get("Linf")
    assert len({norms.get(name) for name in NAMES}) == 5  # hashable and distinct


def test_a_batch_of_budgets_without_vmap_is_refused():
    image = np.full((4, 6), 0.5, np.float32)
    for function in (norms.get("l2").project, norms.get("l2").maximizer):
        with pytest.raises(ValueError, match=r"eps must be a scalar, got shape \(4,\); vmap"):
            function(image, image, np.ones(4))
