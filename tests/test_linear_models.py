"""The exact distances agree with hand calculations, linear programs, SLSQP, subsets and grids."""

import itertools

import numpy as np
import pytest
from scipy import optimize

from tests.linear_models import minimum_distance, minimum_distances, random_linear

NORMS = ("linf", "l2", "l1", "l0", "l0_pixels")


def _solve_numerically(W, b, x, label, norm):
    """The same number by general-purpose solvers, one class at a time."""
    W, b, shape = W.astype(np.float64), b.astype(np.float64), x.shape
    x = x.astype(np.float64).ravel()
    n, best = x.size, np.inf
    for k in range(len(W)):
        w, gap = W[k] - W[label], (W[label] - W[k]) @ x + b[label] - b[k]
        if k == label or np.sum(np.maximum(w * (1 - x), -w * x)) < gap:
            continue
        if norm == "linf":  # variables (d, r): minimise r with -r <= d_i <= r
            rows = np.vstack([np.hstack([sign * np.eye(n), -np.ones((n, 1))]) for sign in (1, -1)])
            solution = optimize.linprog(
                np.append(np.zeros(n), 1.0),
                A_ub=np.vstack([rows, np.append(-w, 0.0)]),
                b_ub=np.append(np.zeros(2 * n), -gap),
                bounds=[*zip(-x, 1 - x, strict=True), (0, None)],
            )
            best = min(best, solution.fun)
        elif norm == "l1":  # d = up - down
            solution = optimize.linprog(
                np.ones(2 * n),
                A_ub=np.append(-w, w)[None],
                b_ub=[-gap],
                bounds=[*((0, room) for room in 1 - x), *((0, room) for room in x)],
            )
            best = min(best, solution.fun)
        elif norm == "l2":
            solution = optimize.minimize(
                lambda d: d @ d,
                np.where(w > 0, 1 - x, -x),  # the far corner is feasible
                jac=lambda d: 2 * d,
                bounds=list(zip(-x, 1 - x, strict=True)),
                constraints={
                    "type": "ineq",
                    "fun": lambda d, w=w, gap=gap: w @ d - gap,
                    "jac": lambda d, w=w: w,
                },
                method="SLSQP",
                options={"ftol": 1e-14, "maxiter": 300},
            )
            best = min(best, np.sqrt(solution.fun))
        else:
            gains = np.maximum(w * (1 - x), -w * x)
            if norm == "l0_pixels":
                gains = gains.reshape(-1, shape[-1]).sum(axis=1)
            best = min(
                best,
                *(
                    float(len(units))
                    for size in range(len(gains) + 1)
                    for units in itertools.combinations(range(len(gains)), size)
                    if gains[list(units)].sum() >= gap
                ),
            )
    return best


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(3,), (2, 2, 2)])
def test_general_solvers_find_the_same_distance(norm, shape):
    for seed in range(3):
        W, b, images, labels = problem = random_linear(seed, shape, classes=3, examples=4)
        expected = [
            _solve_numerically(W, b, x, y, norm) for x, y in zip(images, labels, strict=True)
        ]
        np.testing.assert_allclose(minimum_distances(problem, norm), expected, atol=2e-6)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_no_point_of_a_dense_grid_is_closer_and_some_point_is_nearly_as_close(norm):
    step, order = 1 / 200, {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    axis = np.arange(201) * step
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    for seed in range(4):
        W, b, images, labels = problem = random_linear(seed, (2,), classes=3, examples=4)
        predicted = grid @ W.T.astype(np.float64) + b
        for x, y, distance in zip(images, labels, minimum_distances(problem, norm), strict=True):
            leaves = np.delete(predicted, y, axis=1).max(axis=1) >= predicted[:, y]
            closest = np.linalg.norm(grid[leaves] - x, ord=order, axis=1).min()
            assert distance - 1e-9 <= closest <= distance + 4 * step


def test_away_from_the_box_the_distance_is_the_gap_over_the_dual_norm():
    W, b, x = np.array([[0.0, 0.0], [3.0, -4.0]]), np.array([0.7, 0.0]), np.array([0.5, 0.5])
    gap = 0.7 + 0.5  # logits are (0.7, -0.5)
    assert minimum_distance(W, b, x, 0, "linf") == pytest.approx(gap / 7)
    assert minimum_distance(W, b, x, 0, "l2") == pytest.approx(gap / 5)
    assert minimum_distance(W, b, x, 0, "l1") == pytest.approx(gap / 4)
    assert minimum_distance(W, b, x, 0, "l0") == 1


def test_entries_stopped_by_the_box_are_made_up_for_by_the_others():
    # w = (2, 1), reach = (0.1, 0.5), gap = 0.5: the first entry moves 0.1 and pays 0.2.
    W, b, x = np.array([[0.0, 0.0], [2.0, 1.0]]), np.array([2.8, 0.0]), np.array([0.9, 0.5])
    assert minimum_distance(W, b, x, 0, "linf") == pytest.approx(0.3)
    assert minimum_distance(W, b, x, 0, "l2") == pytest.approx(np.hypot(0.1, 0.3))
    assert minimum_distance(W, b, x, 0, "l1") == pytest.approx(0.4)
    b = np.array([2.75, 0.0])  # gap 0.45: the second entry pays up to 0.5 alone
    assert minimum_distance(W, b, x, 0, "l0") == 1
    b = np.array([2.85, 0.0])  # gap 0.55: neither entry alone
    assert minimum_distance(W, b, x, 0, "l0") == 2


def test_a_pixel_pays_with_all_its_channels():
    W = np.zeros((2, 6))
    W[1] = [1, 1, 1, 2, 0, 0]  # pixel 0 gains 3 in three entries, pixel 1 gains 2 in one
    x = np.zeros((1, 2, 3))
    for gap, features, pixels in [(2.0, 1, 1), (2.5, 2, 1), (3.5, 3, 2), (5.0, 4, 2)]:
        b = np.array([gap, 0.0])
        assert minimum_distance(W, b, x, 0, "l0") == features
        assert minimum_distance(W, b, x, 0, "l0_pixels") == pixels
        assert minimum_distance(W, b, x.ravel(), 0, "l0_pixels") == features


@pytest.mark.parametrize("norm", NORMS)
def test_zero_when_already_wrong_and_infinite_when_out_of_reach(norm):
    W, x = np.array([[0.0, 0.0], [1.0, -1.0], [0.1, 0.1]]), np.array([0.25, 0.75])
    assert minimum_distance(W, np.array([0.0, 0.6, 0.0]), x, 0, norm) == 0.0
    assert minimum_distance(W, np.array([9.0, 0.0, 0.0]), x, 0, norm) == np.inf
    # The best corner gains 0.75 + 0.75 on a gap of 0.5 + bias: reachable up to a bias of 1.
    assert minimum_distance(W, np.array([0.99, 0.0, -9.0]), x, 0, norm) < np.inf
    assert minimum_distance(W, np.array([1.01, 0.0, -9.0]), x, 0, norm) == np.inf


@pytest.mark.parametrize("norm", NORMS)
def test_the_untargeted_distance_is_the_smallest_targeted_one(norm):
    W, b, images, labels = random_linear(5, (2, 2, 2), classes=4)
    for x, y in zip(images, labels, strict=True):
        targeted = [minimum_distance(W, b, x, y, norm, target=k) for k in range(4) if k != y]
        assert minimum_distance(W, b, x, y, norm) == min(targeted)
        assert min(targeted) < max(targeted) or norm.startswith("l0")


@pytest.mark.parametrize("shape", [(3,), (7, 5, 1), (8, 8, 3)])
def test_random_problems_are_solvable_correctly_classified_and_touch_the_box(shape):
    W, b, images, labels = problem = random_linear(1, shape, classes=3, examples=16)
    flat = images.reshape(16, -1)
    assert images.shape == (16, *shape)
    assert images.min() == 0.0
    assert images.max() == 1.0
    np.testing.assert_array_equal((flat @ W.T + b).argmax(axis=1), labels)
    assert len(set(labels)) > 1
    for norm in NORMS:
        distances = minimum_distances(problem, norm)
        assert np.all(distances > 0)
        assert np.all(np.isfinite(distances))
    assert minimum_distances(problem, "linf").max() < 1.0
    again = random_linear(1, shape, classes=3, examples=16)
    for first, second in zip(problem, again, strict=True):
        np.testing.assert_array_equal(first, second)
