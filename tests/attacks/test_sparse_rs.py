"""Sparse-RS: its schedule and its swaps against the published rules; its strength."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import attacks
from prunejax.attacks.sparse_rs import distinct_numbers, random_subsets
from tests.attacks.random_walks import assert_search_is_sound, walk
from tests.attacks.test_closed_form import check_budgets
from tests.linear_models import minimum_distances, random_linear

KEY = jax.random.key(0)

# The paper's appendix: alpha over alpha_init up to that query.
TABLE = ((50, 2), (200, 4), (500, 5), (1000, 6), (2000, 8), (4000, 10), (6000, 12), (8000, 15))


def published_swaps(query: int, alpha_init: float, k: int) -> int:
    divisor = next((divisor for last, divisor in TABLE if query <= last), 20)
    return max(int(alpha_init / divisor * k + 1e-9), 1)


def test_swaps_follow_the_published_schedule():
    queries = np.r_[1:60, 195:205, 495:505, 999:1003, 1999:2003, 3999:4003, 5999:6003, 7999:8003]
    for k, alpha_init in ((5, 0.3), (24, 0.3), (100, 0.3), (150, 0.1)):
        attack = attacks.SparseRS(alpha_init=alpha_init)
        swaps = jax.vmap(lambda step, a=attack, k=k: a.swaps(step, k))(queries - 1)
        assert swaps.tolist() == [published_swaps(query, alpha_init, k) for query in queries]


def test_the_schedule_is_rescaled_unless_told_otherwise():
    steps = np.arange(500)
    for rescale, factor in ((True, 20), (False, 1)):
        attack = attacks.SparseRS(steps=500, rescale_schedule=rescale)
        swaps = jax.vmap(lambda step, a=attack: a.swaps(step, 150))(steps)
        wanted = [published_swaps(factor * (step + 1), 0.3, 150) for step in steps]
        assert swaps.tolist() == wanted


@pytest.mark.parametrize("units", [2, 7, 64])
def test_subsets_have_the_right_size_and_are_uniform(units):
    rng = np.random.default_rng(units)
    keys = jax.random.split(KEY, 4000)
    chosen = rng.permutation(units) < units // 2
    among = jnp.stack([chosen, ~chosen])
    draw = jax.jit(jax.vmap(random_subsets, (0, None, 0)))
    for count in {0, 1, units // 4, units // 2}:
        subsets = np.asarray(draw(keys, among, jnp.full(4000, count)))
        assert np.all(subsets.sum(axis=2) == count)
        assert not np.any(subsets & ~np.asarray(among))
        for subset, members in zip(subsets.swapaxes(0, 1), np.asarray(among), strict=True):
            share = count / members.sum()
            deviation = np.sqrt(share * (1 - share) / 4000) + 1e-9
            assert np.all(np.abs(subset.mean(axis=0)[members] - share) < 5 * deviation)


@pytest.mark.parametrize(("units", "draws"), [(224 * 224, 1000), (3 * 224 * 224, 300)])
def test_subsets_of_large_images_are_uniform_and_exact(units, draws):
    """Here few bits are left to be random: 14 and 12 for each unit."""
    keys = jax.random.split(KEY, draws)
    numbers = jax.jit(jax.vmap(lambda key: distinct_numbers(key, units)))
    chosen = np.ravel([np.argmin(numbers(part), axis=1) for part in keys.reshape(-1, 50)])
    deviation = np.sqrt(draws / 8 * 7 / 8)
    for eighth in (8 * chosen // units, chosen % 8):
        assert np.all(np.abs(np.bincount(eighth, minlength=8) - draws / 8) < 4 * deviation)

    draw = jax.jit(lambda key, count: random_subsets(key, jnp.ones((1, units), bool), count)[0])
    assert [int(draw(key, 1).argmax()) for key in keys[:5]] == chosen[:5].tolist()
    for count in (0, 1, 2, 999, units // 2, units - 1, units):
        assert draw(keys[0], count).sum() == count


@pytest.mark.parametrize(
    ("norm", "shape"),
    [("l0_pixels", (7, 5, 3)), ("l0_pixels", (8, 6)), ("l0", (7, 5, 3))],
)
def test_every_query_is_within_budget_and_box(norm, shape, linear_classifier):
    problem = random_linear(0, shape, examples=6)
    units = 35 if norm == "l0_pixels" and len(shape) == 3 else int(np.prod(shape))
    eps = np.array([0, 1, 3.9, 8, units // 2, units + 3])
    attack = attacks.SparseRS(norm=norm, steps=150)
    seen = walk(attack, problem, linear_classifier(problem), eps, 150)
    assert_search_is_sound(seen, problem, norm, eps)
    assert np.array_equal(
        seen.proposals[:, 0], np.tile(problem.images[0], (150, *[1] * len(shape)))
    )
    moved = seen.proposals != problem.images
    assert np.all(np.isin(seen.proposals[moved], (0, 1)))


def test_one_swap_is_one_pixel_back_and_one_in_a_new_colour(linear_classifier):
    problem = random_linear(3, (6, 5, 2), examples=6)
    problem = problem._replace(images=np.round(problem.images))  # every clean colour is a corner
    attack, k = attacks.SparseRS(), 3
    seen = walk(attack, problem, linear_classifier(problem), k, 60)
    for before, after, proposal in zip(seen.chosen, seen.chosen[1:], seen.proposals, strict=False):
        assert np.all(before.sum(axis=1) == k)
        entered, left = after & ~before, before & ~after
        assert np.array_equal(entered.sum(axis=1), left.sum(axis=1))
        assert np.all(entered.sum(axis=1) <= 1)
        flat = proposal.reshape(6, 30, 2)
        clean = problem.images.reshape(6, 30, 2)
        assert np.all(np.any(flat[entered] != clean[entered], axis=1))
        assert np.array_equal(flat[left], clean[left])
    assert np.any(seen.chosen[0] != seen.chosen[-1])


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 1, 2)])
def test_of_all_pixels_one_comes_back_in_another_colour(shape, linear_classifier):
    problem = random_linear(0, shape, classes=2)
    seen = walk(attacks.SparseRS(), problem, linear_classifier(problem), shape[0], 60)
    assert seen.chosen.all()
    changed = np.any(seen.proposals != seen.accepted[:-1], axis=(3, 4)).sum(axis=2)
    assert np.all(changed <= 1)
    fewest = minimum_distances(problem, "l0_pixels")
    assert np.array_equal(seen.adversarial[-1], np.isfinite(fewest))
    assert seen.adversarial[-1].any()


@pytest.mark.parametrize(
    ("norm", "shape", "classes", "targeted"),
    [("l0_pixels", (5, 4, 3), 2, True), ("l0", (20,), 3, False)],
)
def test_succeeds_within_1_25_of_the_optimum(norm, shape, classes, targeted, linear_classifier):
    attack = attacks.SparseRS(norm=norm, steps=1000, restarts=4, targeted=targeted)
    problem = random_linear(0, shape, classes)
    labels = 1 - problem.labels if targeted else problem.labels
    distances, classifier = minimum_distances(problem, norm), linear_classifier(problem)
    result = check_budgets(attack, classifier, problem, labels, distances)
    assert np.all(result.backwards == 0)
    assert np.all(result.forwards <= 4 * 1001)
