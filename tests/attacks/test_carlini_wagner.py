"""Carlini & Wagner's attack: the optimum of linear networks, tanh space, and the search for c."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import attacks
from prunejax.attacks import carlini_wagner
from prunejax.classifier import Classifier
from tests.attacks.test_closed_form import (
    KEY,
    advantage,
    check_distances,
)
from tests.linear_models import random_linear


@pytest.mark.parametrize(
    ("shape", "classes", "targeted"),
    [((7, 5, 1), 3, True), ((9, 8, 3), 3, False)],
)
def test_it_finds_the_nearest_point(shape, classes, targeted, linear_classifier):
    problem = random_linear(0, shape, classes)
    attack = attacks.CarliniWagner(targeted=targeted)
    check_distances(attack, linear_classifier(problem), problem, 1.05)


def test_confidence_is_the_margin(linear_classifier):
    problem = random_linear(1, (7, 5, 1), classes=3)
    attack = attacks.CarliniWagner(steps=900, confidence=0.1, targets=2)
    classifier = linear_classifier(problem)
    result = attacks.run(attack, classifier, problem.images, problem.labels, key=KEY)
    assert result.success.all()
    margins = advantage(problem, result.images, problem.labels, targeted=False)
    assert np.all(margins > 0.1 - 1e-5)


def test_tanh_space():
    image = jnp.array([0.0, 1e-3, 0.3, 0.5, 1.0])
    w = carlini_wagner.to_tanh_space(image)
    assert np.isclose(w[3], 0)
    assert np.isfinite(w).all()
    np.testing.assert_allclose(carlini_wagner.from_tanh_space(w), image, atol=1e-6)
    np.testing.assert_allclose(carlini_wagner.from_tanh_space(jnp.array([-99.0, 99])), [0, 1])


def test_c_rises_tenfold_and_is_then_bisected():
    lower, upper, c = jnp.array(0.0), jnp.array(jnp.inf), jnp.array(1e-3)
    seen = []
    for won in (False, False, True, False, True):
        lower, upper, c = carlini_wagner.next_weight(lower, upper, c, jnp.array(won))
        seen.append((lower, upper, c))
    expected = [
        (1e-3, np.inf, 1e-2),
        (1e-2, np.inf, 1e-1),
        (1e-2, 1e-1, 5.5e-2),
        (5.5e-2, 1e-1, 7.75e-2),
        (5.5e-2, 7.75e-2, 6.625e-2),
    ]
    np.testing.assert_allclose(seen, expected, rtol=1e-6)
    first_wins = carlini_wagner.next_weight(0.0, jnp.inf, 1e-3, jnp.array(True))
    np.testing.assert_allclose(first_wins, [0, 1e-3, 5e-4], rtol=1e-6)


def line(slope: float, bias: float) -> Classifier:
    """One feature; class 1 where slope * x + bias > 0."""
    variables = np.float32([[0, slope]]), np.float32([0, bias])
    return Classifier(variables, lambda v, images: images @ v[0] + v[1])


def run_steps(attack, classifier, number: int):
    """The states of one example at 0.5."""
    step = jax.jit(attack.step)
    goal = attacks.Goal(jnp.int32(0))
    states = [attack.init(classifier, jnp.array([0.5]), goal, KEY, jnp.inf)]
    for _ in range(number):
        states.append(step(classifier, states[-1]))
    return states


def test_rounds_by_hand():
    """Adam's steps on a line are lr each, as long as the gradient keeps its sign.

    With c = 1, slope 8 and w from 0 in steps of 0.1 the penalty's pull, 8 tanh'(w) / 2, outweighs
    the squared norm's, so that x crosses 0.7 when tanh(w) > 0.4, that is at the sixth look.
    """
    attack = attacks.CarliniWagner(
        steps=17, rounds=2, initial_c=1.0, learning_rate=0.1, abort_early=False
    )
    states = run_steps(attack, line(8.0, -5.6), 19)
    assert [int(s.iteration) for s in states] == [*range(8), *range(8), 0, 1, 2, 3]
    assert [int(s.round) for s in states] == 8 * [0] + 8 * [1] + 4 * [2]
    assert [bool(s.won) for s in states[:8]] == 6 * [False] + 2 * [True]
    np.testing.assert_allclose([s.w[0] for s in states[:7]], 0.1 * np.arange(7), atol=0.02)
    assert [float(s.c) for s in states[7:9]] == [1.0, 0.5]
    assert np.isclose(states[8].found.distance, np.tanh(states[5].w[0]) / 2)
    done = [bool(attack.finished(s)) for s in states]
    assert done == 16 * [False] + 4 * [True]
    # Further steps, which the runner makes for lanes beside, change nothing that counts.
    assert states[16].found.distance == states[19].found.distance


def test_a_round_without_progress_ends_early():
    """Where the penalty is flat the loss can only rise: looked at after a tenth of the round."""
    attack = attacks.CarliniWagner(steps=400, rounds=2, initial_c=1.0, abort_early=True)
    states = run_steps(attack, line(0.0, -1.0), 50)
    assert [int(s.round) for s in states[20:24]] == [0, 1, 1, 1]
    assert bool(attack.finished(states[-1]))


@pytest.mark.parametrize(("confidence", "success"), [(0.0, True), (0.9, True), (1.1, False)])
def test_leaving_the_label_for_a_third_class_counts_where_another_is_headed_for(
    confidence, success
):
    """Logits 1, 0.5 and 2 at every image, of class 0, heading for class 1."""

    def classifier(images):
        return jnp.broadcast_to(jnp.array([1.0, 0.5, 2.0]), (len(images), 3)) + 0 * images.sum()

    attack = attacks.CarliniWagner(confidence=confidence)
    goal = attacks.Goal(jnp.array(0), jnp.array(1))
    state = attack.init(classifier, jnp.full(2, 0.5), goal, jax.random.key(0), jnp.inf)
    assert attack.step(classifier, state).found.success == success


def test_a_round_starts_by_the_slope_alone_however_small_c_is():
    """Adam divides a slope by its size: rounding in a distance of zero would be one too."""
    image, c = jnp.linspace(0.05, 0.95, 19), 1e-9
    classifier = Classifier(None, lambda _, x: jnp.stack([0 * x[:, 0], x.sum(axis=1) - 18], 1))
    attack = attacks.CarliniWagner(steps=5, rounds=1, initial_c=c, learning_rate=0.01)
    state = attack.init(classifier, image, attacks.Goal(jnp.int32(0)), KEY, jnp.inf)
    moved = attack.step(classifier, state).w - state.w
    slope = c * 2 * image * (1 - image)  # of the margin along w
    np.testing.assert_allclose(moved, 0.01 * slope / (slope + 1e-8), rtol=1e-2, atol=1e-6)
