"""Randomised networks: their expectation, and what an attack on it reaches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import attacks
from prunejax.classifier import Classifier
from tests.linear_models import minimum_distances, random_linear

WEIGHTS = np.array([[1.0, -1.0], [0.5, 2.0], [-1.0, 0.0]], np.float32)  # [features, classes]


def noisy(weights, images, key):
    """Logits of images with noise added to them."""
    return (images + 0.5 * jax.random.normal(key, images.shape)) @ weights


def test_it_is_the_mean_over_the_draws():
    images = np.random.default_rng(0).uniform(size=(4, 3)).astype(np.float32)
    many = attacks.expectation(noisy, WEIGHTS, samples=20_000)(images)
    np.testing.assert_allclose(many, images @ WEIGHTS, atol=0.02)  # the noise has mean 0


def test_it_decides_as_the_mean_log_probabilities_do():
    images = np.random.default_rng(0).uniform(size=(4, 3)).astype(np.float32)
    drawn = []

    def watched(weights, images, key):
        out = noisy(weights, images, key)
        jax.debug.callback(drawn.append, out, ordered=False)
        return out

    (found,) = attacks.expectation(watched, WEIGHTS, samples=50)(images[:1])
    jax.effects_barrier()
    expected = np.mean(jax.nn.log_softmax(np.concatenate(drawn)), axis=0)
    assert len(drawn) == 50
    np.testing.assert_allclose(found - found.mean(), expected - expected.mean(), atol=1e-5)


def test_gradients_are_the_mean_of_the_draws_gradients():
    image = jnp.array([0.2, 0.4, 0.9])

    def bent(weights, images, key):
        return jnp.tanh(images + 0.5 * jax.random.normal(key, images.shape)) @ weights

    classifier = attacks.expectation(bent, WEIGHTS, samples=20_000)
    grad = jax.grad(lambda x: classifier(x[None])[0, 0])(image)
    noise = 0.5 * np.random.default_rng(5).normal(size=(200_000, 3))
    expected = np.mean(1 - np.tanh(image + noise) ** 2, axis=0) * WEIGHTS[:, 0]
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


NOISE, SAMPLES = 0.1, 20
# Of the difference of two logits with noise of their own, averaged over the draws.
DEVIATION = NOISE * np.sqrt(2 / SAMPLES)


def noisy_logits(variables, images, key):
    """A linear network that is right or wrong by chance where its margin is below 0.14 or so."""
    weights, bias = variables
    logits = images @ weights.T + bias
    return logits + NOISE * jax.random.normal(key, logits.shape)


def largest_margins(problem, budgets) -> np.ndarray:
    """The largest max_k z_k - z_y without noise within a budget in Linf and the box, `[N]`."""
    W, b, images, labels = (np.asarray(part, np.float64) for part in problem)
    best = []
    for x, y, eps in zip(images, labels.astype(int), budgets, strict=True):
        slopes = W - W[y]
        x = np.clip(x + eps * np.sign(slopes), 0, 1)
        best.append(np.delete(np.sum(slopes * x, axis=1) + b - b[y], y).max())
    return np.array(best)


@pytest.mark.exhaustive
def test_rand_finds_what_is_adversarial_in_the_mean_and_nothing_else():
    """The draws of an image move its margin by 0.03; attacks can only look for lucky ones."""
    problem = random_linear(0, (20,), examples=8)
    variables = problem.weights, problem.bias
    reachable = np.arange(8) % 2 == 0
    budgets = np.where(reachable, 1.6, 0.4) * minimum_distances(problem, "linf")
    margins = largest_margins(problem, budgets)
    assert np.array_equal(margins > 0, reachable)
    assert np.abs(margins).min() > 4 * DEVIATION
    # A single pass often errs on the clean images, the mean of the draws on none.
    classifier = attacks.expectation(noisy_logits, variables, samples=SAMPLES)

    attack = attacks.autoattack(version="rand")
    result = attacks.run(
        attack, classifier, problem.images, problem.labels, key=jax.random.key(0), eps=budgets
    )
    assert np.array_equal(result.success, reachable)
    assert np.all(result.distance > 0)
    assert result.warnings() == []
    # Other draws, and so many that they know the margin to 0.002, hardly disagree.
    fresh = attacks.expectation(noisy_logits, variables, samples=4000, seed=1)
    logits = np.asarray(fresh(result.images[reachable]))
    labels = problem.labels[reachable]
    own = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    others = np.where(np.arange(3) == labels[:, None], -np.inf, logits).max(axis=1)
    assert np.all(others - own > -4 * DEVIATION)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claims(attacks.PGD):
    """Claims success beside the clean image."""

    def result(self, classifier, state):
        return attacks.Found(state.image + 0.05, jnp.array(True), jnp.float32(0))


def test_a_network_that_draws_anew_at_each_pass_confirms_by_chance_and_says_so():
    """Right in the mean, wrong in one pass of four: only so many claims are believed."""
    draws = np.random.default_rng(0)

    def network(_, images):
        wrong = jax.pure_callback(
            lambda x: np.float32(draws.uniform(size=x.shape) < 0.25),
            jax.ShapeDtypeStruct((len(images),), jnp.float32),
            jax.lax.stop_gradient(images[:, 0]),
            vmap_method="broadcast_all",
        )
        return jnp.stack([images[:, 0], jax.lax.stop_gradient(wrong)], axis=1)

    number = 128
    images = np.full((number, 1), 0.5, np.float32)
    result = attacks.run(
        Claims(steps=1), Classifier(None, network), images, np.zeros(number, int),
        key=jax.random.key(0), eps=0.1, devices=jax.local_devices()[:1],
    )  # fmt: skip
    # A quarter was wrong at the clean image already, another quarter of the rest is confirmed.
    attacked = result.distance > 0
    assert 16 < number - attacked.sum() < 48
    assert result.success[attacked].sum() + result.diagnostics.unconfirmed == attacked.sum()
    assert 0.1 < result.success[attacked].mean() < 0.4
    assert result.diagnostics.unrepeatable == 1
    assert any("needs expectation over its randomness" in each for each in result.warnings())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_softmax_at_the_end_is_noticed(dtype):
    """As behind a `Classifier`; of probabilities the mean is taken as they are."""

    def probabilities(weights, images, key):
        return jax.nn.softmax(noisy(weights, images, key).astype(dtype))

    some = np.full((4, 3), 0.5, np.float32), np.full(4, 1)
    options = {"key": jax.random.key(0), "eps": 0.1}
    for network, said in ((probabilities, 1), (noisy, 0)):
        classifier = attacks.expectation(network, WEIGHTS, samples=3)
        warnings = attacks.run(attacks.FGSM(), classifier, *some, **options).warnings()
        assert ["look like probabilities" in warning for warning in warnings] == [True] * said


def test_the_default_kind_of_keys_changes_nothing():
    """Keys that draw from the first of a batch would mix up the images."""
    images = np.random.default_rng(0).uniform(size=(4, 3)).astype(np.float32)
    classifier = attacks.expectation(noisy, WEIGHTS, samples=2)
    with jax.default_prng_impl("rbg"):
        found = classifier(images)
    np.testing.assert_allclose(found, classifier(images), rtol=1e-6)


@pytest.mark.parametrize("samples", [0, 2.5, True])
def test_a_number_of_draws_that_is_none(samples):
    with pytest.raises(ValueError, match=f"samples is {samples}; an integer of at least 1"):
        attacks.expectation(noisy, WEIGHTS, samples=samples)


@pytest.mark.parametrize("seed", [-1, 2.5, "a"])
def test_a_seed_that_is_none(seed):
    with pytest.raises(ValueError, match=f"seed is {seed!r}; an integer of at least 0"):
        attacks.expectation(noisy, WEIGHTS, seed=seed)
