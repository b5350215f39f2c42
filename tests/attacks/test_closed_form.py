"""Attacks against linear networks in the box, where the nearest adversarial example is known.

Untargeted PGD and FGSM climb a convex function there (the largest of several linear ones), so more
than one class to flee to can trap them. What is certain: with two classes, or towards one given
class, the margin is concave and PGD must reach the optimum; FGSM is exact for the runner-up.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import attacks
from tests.linear_models import minimum_distance, minimum_distances, random_linear

NORMS = ("linf", "l2", "l1", "l0", "l0_pixels")
KEY = jax.random.key(0)


def length(delta: np.ndarray, norm: str) -> np.ndarray:
    """Norms of a batch of perturbations, in float64."""
    flat = np.abs(delta.reshape(len(delta), -1).astype(np.float64))
    if norm == "linf":
        return flat.max(axis=1)
    if norm == "l2":
        return np.sqrt((flat**2).sum(axis=1))
    if norm == "l1":
        return flat.sum(axis=1)
    if norm == "l0_pixels" and delta.ndim == 4:
        flat = flat.reshape(len(delta), -1, delta.shape[-1]).max(axis=2)
    return (flat > 0).sum(axis=1)


def advantage(problem, images: np.ndarray, labels: np.ndarray, targeted: bool) -> np.ndarray:
    """By how much the attacker has what he wants, in float64."""
    logits = images.reshape(len(images), -1).astype(np.float64) @ problem.weights.T + problem.bias
    own = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    np.put_along_axis(logits, labels[:, None], -np.inf, axis=1)
    return own - logits.max(axis=1) if targeted else logits.max(axis=1) - own


def assert_valid(result, problem, labels, norm, eps=np.inf, targeted=False):
    """What is called a success is one: in the box, within budget, adversarial, well measured."""
    won = result.success
    assert np.array_equal(won, np.isfinite(result.distance))
    assert np.all((result.images >= 0) & (result.images <= 1))
    measured = length(result.images.astype(np.float64) - problem.images, norm)
    np.testing.assert_allclose(result.distance[won], measured[won], rtol=1e-5)
    assert np.all(measured[won] <= np.broadcast_to(eps, won.shape)[won] * (1 + 1e-6) + 1e-6)
    assert np.all(advantage(problem, result.images, labels, targeted)[won] > -1e-6)
    assert np.array_equal(result.images[~won], problem.images[~won])


def nearest_class(problem, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """The class whose boundary is nearest, and how far it is: it is reached there as well."""
    W, b, images, labels = problem
    distances = [
        [np.inf if k == y else minimum_distance(W, b, x, y, norm, k) for k in range(len(b))]
        for x, y in zip(images, labels, strict=True)
    ]
    return np.argmin(distances, axis=1).astype(np.int32), np.min(distances, axis=1)


def budgets(distances: np.ndarray, norm: str, below=0.95, above=1.25):
    """Budgets that are not enough, and budgets that are; counts are rounded down."""
    if norm.startswith("l0"):
        return distances - 1, np.floor(above * distances)
    return below * distances, above * distances


def check_budgets(attack, classifier, problem, labels, distances, **shares):
    """Nothing is found below the exact distances, everything above them; returns the latter."""
    below, above = budgets(distances, attack.norm, **shares)
    check_budget(attack, classifier, problem, labels, below, False)
    return check_budget(attack, classifier, problem, labels, above, True)


def check_budget(attack, classifier, problem, labels, eps, wanted):
    """Everything is found at this budget, or nothing."""
    result = attacks.run(attack, classifier, problem.images, labels, key=KEY, eps=eps)
    assert_valid(result, problem, labels, attack.norm, eps, attack.targeted)
    assert np.array_equal(result.success, np.full(len(labels), wanted))
    return result


def check_distances(attack, classifier, problem, bound):
    """Everything is found, nearer than `bound` times the exact distance; returns the result."""
    targets, distances = nearest_class(problem, attack.norm)
    labels = targets if attack.targeted else problem.labels
    result = attacks.run(attack, classifier, problem.images, labels, key=KEY)
    assert result.success.all()
    assert_valid(result, problem, labels, attack.norm, targeted=attack.targeted)
    assert np.all(result.distance >= distances * (1 - 1e-5))
    assert np.all(result.distance <= distances * bound)
    return result


# Projected on L0, one start may end one unit short.
RESTARTS = {"l0": 5, "l0_pixels": 5}
EVERY = (
    (attacks.DeepFool(), 1.05),
    (attacks.SigmaZero(steps=300), 1.25),
    *((attacks.PGD(norm=norm, restarts=RESTARTS.get(norm, 1)), 1.25) for norm in NORMS),
    *((attacks.FGSM(norm=norm), 1.0 if norm.startswith("l0") else 1.0001) for norm in NORMS),
)
SHAPES = ((20,), (7, 5, 1), (32, 24, 3))
# Each attack meets all shapes, one of them always, and is targeted in one of them or in two.
CASES = [
    pytest.param(
        dataclasses.replace(attack, targeted=(i + j) % 2 == 1),
        bound,
        shape,
        id=f"{type(attack).__name__}-{attack.norm}-{shape}{'-targeted' * ((i + j) % 2)}",
        marks=() if (i + j) % 3 == 0 else pytest.mark.exhaustive,
    )
    for i, (attack, bound) in enumerate(EVERY)
    for j, shape in enumerate(SHAPES)
]


@pytest.mark.parametrize(("attack", "bound", "shape"), CASES)
def test_every_attack_leaves_one_of_two_classes(attack, bound, shape, linear_classifier):
    """At `bound` times the exact distance and not below it, alone, by three and by eight."""
    whole = random_linear(0, shape, classes=2)
    for number in (1, 3, 8):
        problem = whole._replace(images=whole.images[:number], labels=whole.labels[:number])
        classifier = linear_classifier(problem)
        if attack.minimum_norm:
            check_distances(attack, classifier, problem, bound)
            continue
        labels = 1 - problem.labels if attack.targeted else problem.labels
        below, above = budgets(minimum_distances(problem, attack.norm), attack.norm, above=bound)
        check_budget(attack, classifier, problem, labels, above, True)
        if number == len(whole.images):
            check_budget(attack, classifier, problem, labels, below, False)


@pytest.mark.parametrize(
    ("shape", "classes", "norm"),
    [
        ((32, 24, 3), 3, "linf"),
        pytest.param((32, 24, 3), 3, "l0_pixels", marks=pytest.mark.exhaustive),
        ((7, 5, 1), 10, "l2"),
        ((7, 5, 1), 10, "l1"),
        ((20,), 3, "l0"),
    ],
)
def test_pgd_reaches_the_nearest_of_many_classes(shape, classes, norm, linear_classifier):
    attack = attacks.PGD(norm=norm, targets=9, restarts=2)
    problem = random_linear(0, shape, classes)
    distances = minimum_distances(problem, norm)
    check_budgets(attack, linear_classifier(problem), problem, problem.labels, distances)


@pytest.mark.parametrize(
    ("attack", "bound"),
    [
        (attacks.FMN(norm="l2", targets=9), 1.05),
        (attacks.PDPGD(targets=9), 1.25),
        pytest.param(attacks.FMN(norm="linf", targets=9), 1.05, marks=pytest.mark.exhaustive),
        pytest.param(attacks.FMN(norm="l1", targets=9), 1.25, marks=pytest.mark.exhaustive),
        pytest.param(attacks.DDN(steps=1000, targets=9), 1.05, marks=pytest.mark.exhaustive),
        pytest.param(attacks.CarliniWagner(targets=9), 1.05, marks=pytest.mark.exhaustive),
        pytest.param(attacks.FAB(norm="l1", targets=9), 1.25, marks=pytest.mark.exhaustive),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, attacks.Attack) else "",
)
def test_towards_all_of_many_classes_the_nearest_is_found(attack, bound, linear_classifier):
    problem = random_linear(3, (7, 5, 1), classes=10, examples=6)
    check_distances(attack, linear_classifier(problem), problem, bound)


@pytest.mark.parametrize("attack", [attacks.PGD(norm="l1"), attacks.FGSM(norm="l1")])
def test_budgets_in_l1_hold_for_thousands_of_entries(attack, linear_classifier):
    """Each is rounded, and all of them add up."""
    problem = random_linear(0, (32, 32, 3), classes=2, examples=12)
    eps = 2 * minimum_distances(problem, "l1")
    classifier = linear_classifier(problem)
    result = attacks.run(attack, classifier, problem.images, problem.labels, key=KEY, eps=eps)
    assert result.success.all()
    assert result.diagnostics.outside == 0
    assert np.all(length(result.images.astype(float) - problem.images, "l1") <= eps * (1 + 1e-6))


def _in_l1(delta, eps):
    """The nearest point of the L1 ball, for two entries: both lose alike, or the smaller goes."""
    size = np.abs(delta)
    lost = max(0, (size.sum() - eps) / 2)
    if lost > size.min():
        lost = size.max() - eps
    return np.sign(delta) * np.maximum(size - lost, 0)


BY_HAND = {  # direction of a gradient, and projection on the ball
    "linf": (np.sign, lambda delta, eps: np.clip(delta, -eps, eps)),
    "l2": (
        lambda g: g / np.linalg.norm(g),
        lambda delta, eps: delta * min(1, eps / np.linalg.norm(delta)),
    ),
    "l1": (lambda g: np.sign(g) * (np.abs(g) == np.abs(g).max()), _in_l1),
}


@pytest.mark.parametrize(
    "norm", ["l2", *(pytest.param(norm, marks=pytest.mark.exhaustive) for norm in ("linf", "l1"))]
)
def test_momentum_accumulates_gradients_of_length_one(norm):
    """Three steps by hand, on a margin whose gradient turns."""
    direction, project = BY_HAND[norm]
    image, centre, eps, mu = np.array([0.5, 0.4]), np.array([0.8, 0.1]), 0.3, 0.9
    slopes = np.array([1.0, 30.0])

    def classifier(images):
        score = -jnp.sum(jnp.asarray(slopes) * (images - centre) ** 2, axis=1)
        return jnp.stack([jnp.zeros_like(score), score], axis=1)

    attack = attacks.PGD(norm=norm, steps=3, relative_step=0.4, momentum=mu, random_start=False)
    state = attack.init(
        classifier, jnp.float32(image), attacks.Goal(jnp.array(0)), KEY, jnp.float32(eps)
    )
    x, g = image, np.zeros(2)
    for _ in range(3):
        state = attack.step(classifier, state)
        grad = -2 * slopes * (x - centre)
        g = mu * g + grad / np.abs(grad).sum()
        x = image + project(x + 0.4 * eps * direction(g) - image, eps)
        np.testing.assert_allclose(state.x, x, atol=1e-5)


@pytest.mark.parametrize(
    ("norm", "way"),
    [
        ("linf", [0.025, 0.025]),  # 2.5 / steps of eps
        ("l2", [0.015, 0.02]),
        ("l1", [0.0, 0.04]),  # 0.2 of eps, on the steepest
        ("l0", [0.12, 0.5]),  # 6 an entry on average: the steepest beyond the edge of the box
    ],
)
def test_the_default_steps_of_pgd(norm, way):
    slopes = {"l2": [3.0, 4.0], "l0": [1.0, 99.0]}.get(norm, [1.0, 2.0])
    budget = 2.0 if norm == "l0" else 0.2
    image = jnp.full(2, 0.5)

    def classifier(images):
        score = images @ jnp.array(slopes) - 1000
        return jnp.stack([jnp.zeros_like(score), score], axis=1)

    attack = attacks.PGD(norm=norm, steps=20, random_start=False)
    state = attack.init(classifier, image, attacks.Goal(jnp.array(0)), KEY, jnp.float32(budget))
    np.testing.assert_allclose(attack.step(classifier, state).x - image, way, atol=1e-6)


@pytest.mark.parametrize(("shape", "classes", "norm"), [((20,), 3, "linf"), ((20,), 10, "l1")])
def test_restarts_free_pgd_from_the_wrong_class(shape, classes, norm, linear_classifier):
    problem = random_linear(0, shape, classes)
    attack = attacks.PGD(norm=norm, restarts=30)
    distances = minimum_distances(problem, norm)
    check_budgets(attack, linear_classifier(problem), problem, problem.labels, distances)


@pytest.mark.parametrize("norm", ["linf", "l1", "l0_pixels"])
def test_fgsm_on_the_margin_is_exact_for_the_runner_up(norm, linear_classifier):
    problem = random_linear(0, (32, 24, 3), classes=10)
    W, b, images, labels = problem
    runner_up = np.argsort(images.reshape(8, -1) @ W.T + b, axis=1)[:, -2]
    to_runner_up = np.array(
        [
            minimum_distance(W, b, x, y, norm, k)
            for x, y, k in zip(images, labels, runner_up, strict=True)
        ]
    )
    enough = to_runner_up if norm.startswith("l0") else 1.0001 * to_runner_up
    too_little, _ = budgets(minimum_distances(problem, norm), norm)
    attack = attacks.FGSM(norm=norm, loss="margin")
    for eps, wanted in ((too_little, False), (enough, True)):
        result = attacks.run(attack, linear_classifier(problem), images, labels, key=KEY, eps=eps)
        assert_valid(result, problem, labels, norm, eps)
        assert np.array_equal(result.success, np.full(8, wanted))


@pytest.mark.parametrize(
    ("shape", "classes", "options"),
    [
        ((20,), 2, {}),
        ((32, 24, 3), 10, {"norm": "linf"}),
        ((7, 5, 1), 10, {"targeted": True}),
        # By itself it guesses the nearest class without looking at the box, rarely wrongly.
        ((7, 5, 1), 10, {"targets": 9, "norm": "linf"}),
        ((20,), 10, {"targets": 9}),
    ],
)
def test_deepfool_finds_the_nearest_point(shape, classes, options, linear_classifier):
    attack = attacks.DeepFool(**options)
    for seed in range(3):
        problem = random_linear(seed, shape, classes)
        check_distances(attack, linear_classifier(problem), problem, 1.05)


@pytest.mark.parametrize(
    ("attack", "bound"),
    [
        (attacks.APGD(loss="dlr"), 1.25),
        pytest.param(attacks.FAB(norm="l2", targets=9), 1.05, marks=pytest.mark.exhaustive),
        pytest.param(attacks.DeepFool(targets=30), 1.05, marks=pytest.mark.exhaustive),
    ],
)
def test_a_thousand_classes(attack, bound, linear_classifier):
    problem = random_linear(0, (20,), classes=1000)
    distances = minimum_distances(problem, attack.norm)
    eps = None if attack.minimum_norm else bound * distances
    classifier = linear_classifier(problem)
    result = attacks.run(attack, classifier, problem.images, problem.labels, key=KEY, eps=eps)
    assert result.success.all()
    assert_valid(result, problem, problem.labels, attack.norm, bound * distances)


@pytest.mark.parametrize(
    ("shape", "classes", "options"),
    [
        ((32, 24, 3), 10, {}),
        # Of three features or fewer none may be wrong, and what is chosen early is not always
        # undone: other starts choose otherwise.
        ((7, 5, 1), 2, {"targeted": True, "steps": 300, "random_start": True, "restarts": 15}),
        ((32, 24, 3), 10, {"norm": "l0_pixels"}),
    ],
)
def test_sigma_zero_changes_the_fewest(shape, classes, options, linear_classifier):
    problem = random_linear(0, shape, classes)
    check_distances(attacks.SigmaZero(**options), linear_classifier(problem), problem, 1.25)
