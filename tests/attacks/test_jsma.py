"""JSMA: its choice of features by brute force, its counts where the fewest are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import attacks
from prunejax.attacks.goal import Goal
from prunejax.attacks.jsma import best_pair, best_single
from prunejax.classifier import Classifier
from tests.attacks.test_closed_form import assert_valid, length
from tests.linear_models import LinearProblem, minimum_distances, random_linear

KEY = jax.random.key(0)


def saliencies(rise, fall, among, pairs: bool) -> np.ndarray:
    """All of them by the definition: of pairs `[d, d]`, of single features `[d, d]` diagonal."""
    rise, fall = rise.astype(np.float64), fall.astype(np.float64)
    off_diagonal = ~np.eye(len(rise), dtype=bool)
    R, F = (part[:, None] + part if pairs else np.diag(part) for part in (rise, fall))
    allowed = among[:, None] & among & (off_diagonal if pairs else ~off_diagonal)
    return np.where(allowed & (R > 0) & (F > 0), R * F, 0)


def features(kind: str, seed: int, size: int = 60):
    rng = np.random.default_rng(seed)
    rise, fall = rng.normal(size=(2, size))
    if kind == "opposed":  # what raises one sum lowers the other
        fall = -rise + 0.1 * fall
    if kind == "rare":  # hardly any sum is positive
        rise, fall = rise - 2.5, fall - 1.5
    if kind == "never":
        rise, fall = rise, -np.abs(fall)
    if kind == "tiny":
        rise, fall = 1e-25 * rise, 1e-22 * fall
    if kind == "tied":
        rise, fall = np.round(rise), np.round(fall)
    return rise.astype(np.float32), fall.astype(np.float32), rng.uniform(size=size) < 0.8


@pytest.mark.parametrize(("theta", "spent", "worth"), [(1.0, 0.995, 0.2), (-1.0, 0.005, 0.8)])
def test_a_feature_that_is_nearly_spent_is_not_chosen(theta, spent, worth):
    """Its slope is the largest; two of the others are enough."""
    slopes = np.float32(np.sign(theta)) * np.float32([9, 3, 2, 1])
    images = np.array([[spent, worth, worth, worth]], np.float32)
    variables = np.stack([-slopes, slopes]), np.float32([0, -2 * (images @ slopes)[0] - 6])
    classifier = Classifier(variables, lambda v, x: x @ v[0].T + v[1])
    attack = attacks.JSMA(theta=theta, pairs=False)
    result = attacks.run(attack, classifier, images, np.zeros(1, int), key=KEY)
    assert np.array_equal(result.images[0] != images[0], [False, True, True, False])


@pytest.mark.parametrize("pairs", [True, False])
def test_the_choice_is_the_best_of_all(pairs):
    kinds = ("independent", "opposed", "rare", "never", "tiny", "tied")
    cases = [features(kind, seed) for kind in kinds for seed in range(30)]
    choose = jax.jit(jax.vmap(best_pair if pairs else best_single))
    masks = np.asarray(choose(*(np.stack(part) for part in zip(*cases, strict=True))))
    nothing = 0
    for (rise, fall, among), mask in zip(cases, masks, strict=True):
        table = saliencies(rise, fall, among, pairs)
        nothing += table.max() == 0
        assert mask.sum() == (0 if table.max() == 0 else 2 if pairs else 1)
        assert np.all(among[mask])
        if mask.any():
            chosen = np.flatnonzero(mask)
            np.testing.assert_allclose(table[chosen[0], chosen[-1]], table.max(), rtol=1e-5)
    assert 30 <= nothing < 100


@pytest.mark.parametrize(
    ("rise", "fall", "pair"),
    [
        ([3.0, -1.0, 1.0, 1.0], [-1.0, 3.0, 0.5, 0.5], [0, 1]),  # none of these two by itself
        ([1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.9, 0.0], [0, 1]),
        ([1.0, 1.0, 0.1, 0.0], [1.0, 1.0, 3.9, 0.0], [0, 2]),
        ([1.0, 0.5, 0.0, 0.0], [-1.0, -0.5, 0.0, 0.0], []),
    ],
)
def test_pairs_by_hand(rise, fall, pair):
    mask = best_pair(jnp.array(rise), jnp.array(fall), jnp.ones(4, bool))
    assert np.flatnonzero(mask).tolist() == pair


@pytest.mark.parametrize(("among", "chosen"), [((1,), [1]), ((2,), []), ((), []), ((0, 1), [0, 1])])
def test_the_last_feature_moves_by_itself(among, chosen):
    rise, fall = jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 1.0, -1.0])
    mask = best_pair(rise, fall, jnp.isin(jnp.arange(3), jnp.array(among, int)))
    assert np.flatnonzero(mask).tolist() == chosen


def opposites(seed: int, shape, classes: int, clean: float) -> LinearProblem:
    """Black (or white) images and two classes of opposite weights: alpha |beta| is gain squared.

    Classes beyond the second never win and have no gradient.
    """
    problem = random_linear(seed, shape, 2)
    w, images = problem.weights[1] - problem.weights[0], np.full_like(problem.images, clean)
    useful = np.sort(np.maximum(w if clean == 0 else -w, 0))[::-1]
    gap = 0.3 * useful.sum()
    weights, bias = np.zeros((classes, w.size), np.float32), np.full(classes, -100, np.float32)
    weights[0], weights[1] = -w / 2, w / 2
    at_clean = float(clean * w.sum())
    bias[0], bias[1] = (gap + at_clean) / 2, -(gap + at_clean) / 2
    return LinearProblem(weights, bias, images, np.zeros(len(images), np.int32))


@pytest.mark.parametrize(
    ("shape", "classes", "theta", "pairs"),
    [((20,), 2, 1.0, True), ((7, 5, 1), 2, -1.0, False), ((32, 24, 3), 10, 1.0, True)],
)
def test_the_fewest_features_when_saliency_is_gain(shape, classes, theta, pairs, linear_classifier):
    attack = attacks.JSMA(theta=theta, pairs=pairs, steps=400)
    for seed in range(3):
        problem = opposites(seed, shape, classes, clean=0.0 if theta > 0 else 1.0)
        fewest = minimum_distances(problem, "l0", target=1)
        classifier = linear_classifier(problem)
        result = attacks.run(attack, classifier, problem.images, problem.labels, key=KEY)
        assert_valid(result, problem, problem.labels, "l0")
        assert np.all(fewest > 1)
        number = 2 * np.ceil(fewest / 2) if pairs else fewest
        assert np.array_equal(result.distance, number)
        # Each step once through the network and twice back; the last image is seen in a step too.
        assert np.array_equal(result.backwards, 2 * (result.forwards - 1))


def walk(attack, problem, classifier, steps, goal):
    """Iterates `[steps, examples, ...]`, and whether the attack had finished after each step."""

    def one(image, label):
        state = attack.init(classifier, image, goal(label), KEY, jnp.inf)

        def body(state, _):
            state = attack.step(classifier, state)
            return state, (state.x, attack.finished(state))

        return jax.lax.scan(body, state, None, length=steps)[1]

    x, finished = jax.jit(jax.vmap(one))(problem.images, problem.labels)
    return np.asarray(x).swapaxes(0, 1), np.asarray(finished).T


def test_follows_the_saliency_map_and_chooses_no_feature_twice(linear_classifier):
    problem = random_linear(0, (20,), classes=3)
    attack, steps = attacks.JSMA(theta=-0.3), 10
    targets = (problem.labels + 1) % 3
    seen, finished = walk(
        attack,
        problem._replace(labels=targets),
        linear_classifier(problem),
        steps,
        lambda target: Goal(None, target),
    )
    for n, (clean, target) in enumerate(zip(problem.images, targets, strict=True)):
        x, domain, done = clean.copy(), clean > 0, False
        for step in range(steps):
            alpha = problem.weights[target]
            beta = problem.weights.sum(axis=0) - alpha
            table = saliencies(-alpha, beta, domain, pairs=True)
            done = done or np.argmax(problem.weights @ x + problem.bias) == target
            if not done and table.max() > 0:
                pair = list(np.unravel_index(np.argmax(table), table.shape))
                x[pair] = np.clip(x[pair] - np.float32(0.3), 0, 1)
                domain[pair] = False
            assert finished[step, n] == (done or table.max() == 0)
            np.testing.assert_allclose(seen[step, n], x, atol=1e-6)
    assert np.all(length(seen[-1] - problem.images, "l0") <= 2 * steps)


def test_heads_for_the_likeliest_class_or_for_several(linear_classifier):
    problem = random_linear(1, (20,), classes=4)
    clean = problem.images @ problem.weights.T + problem.bias
    order = np.argsort(clean, axis=1)[:, ::-1]
    classifier = linear_classifier(problem)

    @jax.jit
    @jax.vmap
    def target(image, label):
        return attacks.JSMA().init(classifier, image, Goal(label), KEY, jnp.inf).target

    assert np.array_equal(target(problem.images, problem.labels), order[:, 1])
    one, three = (
        attacks.run(attack, classifier, problem.images, problem.labels, key=KEY)
        for attack in (attacks.JSMA(), attacks.JSMA(targets=3))
    )
    assert_valid(three, problem, problem.labels, "l0")
    assert np.all(three.distance <= one.distance)
    assert np.any(three.distance < one.distance)


def test_gives_up_where_nothing_helps(linear_classifier):
    problem = opposites(0, (20,), 2, clean=1.0)  # no way up
    attack, classifier = attacks.JSMA(steps=400), linear_classifier(problem)
    result = attacks.run(attack, classifier, problem.images, problem.labels, key=KEY)
    assert not result.success.any()
    assert np.array_equal(result.images, problem.images)
    assert np.all(result.forwards < 30)
