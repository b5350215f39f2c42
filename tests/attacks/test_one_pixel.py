"""One pixel: the parts of its differential evolution, and its success where the least is known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import attacks
from prunejax.attacks.goal import Goal
from prunejax.attacks.one_pixel import paint, three_others
from tests.attacks.test_closed_form import check_budgets
from tests.linear_models import LinearProblem, minimum_distances, random_linear

KEY = jax.random.key(0)


def test_parents_are_three_others_and_uniform():
    number, draws = 5, 6000
    drawn = np.asarray(
        jax.vmap(three_others, (0, None), 2)(jax.random.split(KEY, draws), number)
    )  # [3, number, draws]
    for i in range(number):
        wanted = list(itertools.permutations([j for j in range(number) if j != i], 3))
        seen, counts = np.unique(drawn[:, i].T, axis=0, return_counts=True)
        assert sorted(map(tuple, seen.tolist())) == sorted(wanted)
        share = 1 / len(wanted)
        assert np.all(np.abs(counts - draws * share) < 5 * np.sqrt(draws * share))


@pytest.mark.parametrize("shape", [(9,), (4, 3), (4, 3, 2)])
def test_paint_against_a_loop(shape):
    rng = np.random.default_rng(0)
    channels = shape[2] if len(shape) == 3 else 1
    image = rng.uniform(size=shape).astype(np.float32)
    candidates = rng.uniform(size=(40, 5, 2 + channels)).astype(np.float32)
    candidates[0, :2, :2] = candidates[0, 0, :2]  # the second lies on the first
    eps = np.resize(np.float32([0, 1, 2.9, 5, 7]), 40)
    painted = jax.vmap(paint, (None, 0, 0))(image, candidates, eps)
    for candidate, budget, x in zip(candidates, eps, painted, strict=True):
        wanted = image.copy().reshape(shape[0], -1, channels)
        for row, column, *colour in candidate[: int(budget)].tolist():
            wanted[int(row * shape[0]), int(column * wanted.shape[1])] = colour
        assert np.array_equal(x, wanted.reshape(shape))


@pytest.mark.parametrize("strategy", ["rand1", "best1", "both"])
def test_children_follow_the_published_rule(strategy):
    attack = attacks.OnePixel(differential_weight=0.7, strategy=strategy)
    population = jax.random.uniform(jax.random.key(1), (6, 2, 5))
    population = population.at[..., 2:].set(jnp.round(population[..., 2:]))
    loss = jnp.arange(6.0) % 4  # the fourth is the best
    children = np.asarray(attack.breed(KEY, population, loss)).astype(np.float64)
    parents = np.asarray(population).astype(np.float64)
    outside = 0
    for i, child in enumerate(children):
        fits = []
        for a, b, c in itertools.permutations([j for j in range(6) if j != i], 3):
            is_random = strategy == "rand1" or (strategy == "both" and i % 2 == 0)
            near = parents[a if is_random else 3]
            wanted = near + 0.7 * (parents[b] - parents[c])
            place, colour = wanted[:, :2], np.clip(wanted[:, 2:], 0, 1)
            away = (place < 0) | (place >= 1)
            same_place = away | (np.abs(child[:, :2] - place) < 1e-5)
            if same_place.all() and np.allclose(child[:, 2:], colour, atol=1e-5):
                fits.append(away.sum())
        assert fits
        outside += min(fits)
        assert np.all((child >= 0) & (child <= 1))
        assert np.all(child[:, :2] < 1)
    assert outside > 0


def generations(attack, problem, classifier, eps, steps):
    """Of each generation `[steps + 1, examples]`: losses, populations and whether one succeeded."""

    def one(image, label, eps):
        state = attack.init(classifier, image, Goal(label), KEY, eps)

        def seen(state):
            x = jax.vmap(paint, (None, 0, None))(image, state.population, eps)
            return state.loss, x, state.adversarial, attack.result(classifier, state).image

        def body(state, _):
            after = attack.step(classifier, state)
            return after, seen(after)

        return seen(state), jax.lax.scan(body, state, None, length=steps)[1]

    start, after = jax.device_get(jax.jit(jax.vmap(one))(problem.images, problem.labels, eps))
    return jax.tree.map(lambda a, b: np.concatenate([a[None], b.swapaxes(0, 1)]), start, after)


def test_no_parent_gets_worse_and_every_candidate_is_within_budget(linear_classifier):
    problem = random_linear(0, (7, 5, 3))
    attack = attacks.OnePixel(pixels=4, population=21, slice_size=8)
    eps = np.float32([0, 0.9, 1, 2, 3.5, 4, 9, 9])
    loss, x, adversarial, found = generations(
        attack, problem, linear_classifier(problem), eps, steps=12
    )
    assert np.all(np.diff(loss, axis=0) >= 0)
    assert np.any(np.diff(loss, axis=0) > 0)
    assert np.all((x >= 0) & (x <= 1))
    changed = np.any(x != problem.images[:, None], axis=-1).sum(axis=(3, 4))
    assert np.all(changed <= np.minimum(np.floor(eps), 4)[:, None])
    assert np.array_equal(x[:, 0], np.broadcast_to(problem.images[0], x[:, 0].shape))
    logits = x.reshape(*loss.shape, -1) @ problem.weights.T + problem.bias
    label = problem.labels[None, :, None, None]
    own = np.take_along_axis(logits, label, axis=3)[..., 0]
    np.put_along_axis(logits, label, -np.inf, axis=3)
    np.testing.assert_allclose(loss, logits.max(axis=3) - own, atol=1e-4)
    assert np.array_equal(adversarial, (loss > 0).any(axis=2))
    assert np.all(np.any(found != problem.images, axis=(2, 3, 4)) == adversarial)


def pixels_away(number: int, shape, classes: int) -> LinearProblem:
    """Images that exactly so many pixels must change in."""
    problem = random_linear(0, shape, classes, examples=64)
    which = np.flatnonzero(minimum_distances(problem, "l0_pixels") == number)[:8]
    return problem._replace(images=problem.images[which], labels=problem.labels[which])


@pytest.mark.parametrize(
    ("shape", "classes", "options"),
    [
        pytest.param((9, 8, 3), 3, {"population": 100, "steps": 40}, marks=pytest.mark.exhaustive),
        ((20,), 2, {"pixels": 2, "population": 40, "restarts": 2, "targeted": True}),
    ],
)
def test_as_few_pixels_as_can_be_are_enough(shape, classes, options, linear_classifier):
    attack = attacks.OnePixel(**options)
    problem = pixels_away(attack.pixels, shape, classes)
    labels = 1 - problem.labels if attack.targeted else problem.labels
    distances, classifier = np.full(8, attack.pixels), linear_classifier(problem)
    result = check_budgets(attack, classifier, problem, labels, distances, above=1.0)
    assert np.all(result.forwards % attack.population == 0)
    assert np.all(result.backwards == 0)
