"""Randomised networks: their expectation, and what an attack on it reaches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import attacks

WEIGHTS = np.array([[1.0, -1.0], [0.5, 2.0], [-1.0, 0.0]], np.float32)  # [features, classes]


def noisy(weights, images, key):
    """Logits of images with noise added to them."""
    return (images + 0.5 * jax.random.normal(key, images.shape)) @ weights


def test_it_is_the_mean_over_the_draws():
    images = np.random.default_rng(0).uniform(size=(4, 3)).astype(np.float32)
    many = attacks.expectation(noisy, WEIGHTS, samples=20_000)(images)
    # Of log softmax of (a, b) only the difference is random, and it is normal.
    rng = np.random.default_rng(1)
    draws = images @ WEIGHTS + 0.5 * rng.normal(size=(200_000, 1, 3)) @ WEIGHTS
    expected = np.mean(np.asarray(jax.nn.log_softmax(draws)), axis=0)
    np.testing.assert_allclose(many, expected, atol=0.02)


def test_gradients_are_the_mean_of_the_draws_gradients():
    image = jnp.array([0.2, 0.4, 0.9])
    classifier = attacks.expectation(noisy, WEIGHTS, samples=20_000)
    grad = jax.grad(lambda x: classifier(x[None])[0, 0])(image)
    noise = 0.5 * jax.random.normal(jax.random.key(5), (200_000, 3))
    p = jax.nn.softmax((image + noise) @ WEIGHTS)
    expected = WEIGHTS[:, 0] - np.mean(p, axis=0) @ WEIGHTS.T
    np.testing.assert_allclose(grad, expected, atol=0.02)


def test_the_same_image_meets_the_same_draws_wherever_it_stands():
    images = np.random.default_rng(0).uniform(size=(6, 3)).astype(np.float32)
    classifier = attacks.expectation(noisy, WEIGHTS, samples=2)
    logits = classifier(images)
    np.testing.assert_allclose(classifier(images[::-1])[::-1], logits, rtol=1e-6)
    np.testing.assert_allclose(classifier(images[2:3]), logits[2:3], rtol=1e-6)


@pytest.mark.parametrize("other", ["nextafter", "swap"])
def test_another_image_meets_other_draws(other):
    image = np.array([[0.25, 0.5, 0.75]], np.float32)
    moved = np.nextafter(image, 1, dtype=np.float32) if other == "nextafter" else image[:, ::-1]

    def only_noise(_, images, key):
        return jax.random.normal(key, (len(images), 2))

    classifier = attacks.expectation(only_noise, None, samples=1)
    assert np.abs(classifier(image) - classifier(moved)).max() > 1e-3


def test_an_attack_on_the_expectation_leaves_the_class_of_the_mean():
    """The noise has mean zero, so the boundary is nearly that of the network without it."""
    images = np.array([[0.9, 0.1, 0.3]], np.float32)
    classifier = attacks.expectation(noisy, WEIGHTS, samples=200)
    attack = attacks.create("apgd", steps=20)
    # The gap 1.8 - (-0.15) - 0.3 = 1.35 closes at a rate of 2 + 1.5 + 1 a unit of Linf: at 0.3.
    for eps, wanted in ((0.2, False), (0.4, True)):
        result = attacks.run(
            attack, classifier, images, np.array([0]), key=jax.random.key(0), eps=eps
        )
        assert result.success.all() == wanted
        assert result.diagnostics.warnings() == []


def test_fewer_than_one_draw_is_refused():
    with pytest.raises(ValueError, match="samples is 0; at least 1 draw"):
        attacks.expectation(noisy, WEIGHTS, samples=0)
