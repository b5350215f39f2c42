"""The losses that attacks maximise, against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax.attacks import Goal, losses


@pytest.mark.parametrize(
    ("logits", "label", "expected"),
    [
        ([3.0, 1.0, -2.0], 0, -2.0),  # 1 - 3
        ([3.0, 1.0, -2.0], 1, 2.0),
        ([3.0, 1.0, -2.0], 2, 5.0),
        ([4.0, 4.0, 0.0], 0, 0.0),  # a tie is neither won nor lost
        ([4.0, 4.0, 0.0], 2, 4.0),
        ([1.0, -np.inf, -np.inf], 0, -np.inf),  # no other class can be reached
        ([1.0, -np.inf, 0.5], 0, -0.5),
        ([1.0, -np.inf, 0.5], 1, np.inf),
        ([-5.0, -7.0], 0, -2.0),  # the label is left out, not set to zero
    ],
)
def test_margin(logits, label, expected):
    assert losses.margin(jnp.array(logits), Goal(label)) == expected


@pytest.mark.parametrize(
    ("logits", "label", "expected"),
    [
        ([0.0, 0.0], 0, np.log(2)),
        ([0.0] * 10, 3, np.log(10)),
        ([np.log(3), 0.0], 0, np.log(4 / 3)),  # probabilities 3/4 and 1/4
        ([np.log(3), 0.0], 1, np.log(4)),
        ([500.0, 0.0], 1, 500.0),  # no overflow
        ([0.0, -np.inf], 0, 0.0),
    ],
)
def test_cross_entropy(logits, label, expected):
    actual = losses.cross_entropy(jnp.array(logits, jnp.float32), Goal(label))
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)


def test_the_gradient_of_the_margin_is_that_of_two_logits():
    grad = jax.grad(losses.margin)(jnp.array([30.0, 1.0, -2.0, 0.5]), Goal(0))
    assert np.array_equal(grad, [-1, 1, 0, 0])  # where softmax(z) - e_y has vanished
    saturated = jax.grad(losses.cross_entropy)(jnp.array([200.0, 1.0, -2.0, 0.5]), Goal(0))
    assert np.array_equal(saturated, np.zeros(4))


def test_the_gradient_of_the_margin_shares_a_tie():
    grad = jax.grad(losses.margin)(jnp.array([0.0, 2.0, 2.0]), Goal(0))
    assert grad[0] == -1
    assert grad[1:].sum() == 1


def test_the_gradient_of_cross_entropy_is_the_error_of_the_probabilities():
    grad = jax.grad(losses.cross_entropy)(jnp.log(jnp.array([5.0, 3.0, 2.0])), Goal(1))
    np.testing.assert_allclose(grad, [0.5, -0.7, 0.2], atol=1e-6)


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        (Goal(label=0), (3 - 4) / (4 - 1)),  # sorted: 4, 3, 1, 0
        (Goal(label=2), (4 - 1) / (4 - 1)),
        (Goal(label=0, target=2), (1 - 4) / (4 - (1 + 0) / 2)),
        (Goal(target=3), (0 - 4) / (4 - (1 + 0) / 2)),
    ],
)
def test_dlr(goal, expected):
    logits = jnp.array([4.0, 3.0, 1.0, 0.0])
    np.testing.assert_allclose(losses.dlr(logits, goal), expected, rtol=1e-6)
    # Neither a shift nor a scale of the logits matters.
    np.testing.assert_allclose(losses.dlr(100 * logits - 7, goal), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("logits", "goal"),
    [([2.0, 5.0], Goal(label=0)), ([2.0, 5.0, 1.0], Goal(label=0, target=2))],
)
def test_dlr_is_the_margin_where_there_are_too_few_classes(logits, goal):
    logits = jnp.array(logits)
    assert losses.dlr(logits, goal) == losses.margin(logits, goal)


@pytest.mark.parametrize(
    ("goal", "margin", "probability"),
    [(Goal(target=1), -2.0, 0.25), (Goal(label=0, target=2), -3.0, 0.25)],
)
def test_losses_towards_a_target(goal, margin, probability):
    logits = jnp.log(jnp.array([1 / 2, 1 / 4, 1 / 4]))
    np.testing.assert_allclose(losses.cross_entropy(logits, goal), np.log(probability), rtol=1e-6)
    assert losses.margin(jnp.array([3.0, 1.0, 0.0]), goal) == margin


def test_kl():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    goal = Goal(label=0, clean=jnp.log(p) + 3)
    np.testing.assert_allclose(
        losses.kl(jnp.log(q) - 1, goal), np.sum(p * np.log(p / q)), rtol=1e-5
    )
    assert not np.asarray(jax.grad(losses.kl)(jnp.log(jnp.array(p)), goal)).round(6).any()
    with pytest.raises(ValueError, match="loss is 'kl'"):
        losses.kl(jnp.log(q), Goal(label=0))
