"""Losses by hand; adversarial ones at the examples that the adversary makes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import Classifier, Network, attacks, models
from prunejax.training import adversaries, objectives

KEY = jax.random.key(0)
NETWORK = Network(models.create("mlp", 3, widths=[5]), mean=0.4, std=0.3)
VARIABLES = NETWORK.init(jax.random.key(1), (2, 2, 1))
IMAGES = jax.random.uniform(jax.random.key(2), (6, 2, 2, 1))
LABELS = jnp.array([0, 1, 2, 2, 1, 0])


def by_hand(variables, images, smoothing=0.0):
    """Mean of -sum_k q_k log p_k, q_k = (1 - s) [k = y] + s / C, in float64."""
    logits = np.asarray(NETWORK(variables, images), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    q = (1 - smoothing) * np.eye(3)[np.asarray(LABELS)] + smoothing / 3
    return -(q * log_p).sum(-1).mean()


def sign_adversary(classifier, images, labels, key):
    """One step along the sign of the loss's gradient, differentiable if one lets it."""
    del key
    log_p = lambda x: jax.nn.log_softmax(classifier(x))[jnp.arange(len(x)), labels].sum()  # noqa: E731
    return images - 0.1 * jnp.tanh(10 * jax.grad(log_p)(images))


def evaluate(objective, variables=VARIABLES, network=NETWORK):
    run = lambda v: objective(network, v, IMAGES, LABELS, KEY)  # noqa: E731
    return jax.jit(jax.value_and_grad(run, has_aux=True))(variables)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_natural_is_smoothed_cross_entropy(smoothing):
    (loss, (collections, metrics)), _ = evaluate(objectives.natural(smoothing))
    np.testing.assert_allclose(loss, by_hand(VARIABLES, IMAGES, smoothing), rtol=1e-5)
    right = np.argmax(NETWORK(VARIABLES, IMAGES), -1) == np.asarray(LABELS)
    assert metrics["accuracy"] == pytest.approx(right.mean())
    assert not collections


def test_natural_of_two_logits_by_hand():
    # Logits (log 3, 0) give p = (3/4, 1/4); labels 0 and 1: (-log 3/4 - log 1/4) / 2.
    class Fixed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jnp.broadcast_to(jnp.log(jnp.array([3.0, 1.0])), (len(x), 2))

    loss, (_, metrics) = objectives.natural()(
        Network(Fixed()), {"params": {}}, jnp.zeros((2, 1)), jnp.array([0, 1]), KEY
    )
    assert loss == pytest.approx(0.5 * np.log(16 / 3), rel=1e-6)
    assert metrics["accuracy"] == 0.5


def test_dropout_draws_anew_with_every_key_and_only_in_training():
    class Dropping(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dropout(0.5, deterministic=not train)(x)

    network, image = Network(Dropping()), jnp.array([[0.5, 0.25]])
    assert network({}, image).tolist() == image.tolist()
    # Each logit is dropped or doubled; attacked it is the one of class 0 that has fallen to 0.1.
    for objective, (a, b) in (
        (objectives.natural(), (1.0, 0.5)),
        (objectives.adversarial(lambda f, x, y, key: x.at[:, 0].set(0.1)), (0.2, 0.5)),
    ):
        loss = jax.jit(lambda key, f=objective: f(network, {}, image, jnp.array([0]), key)[0])
        losses = jax.vmap(loss)(jax.random.split(KEY, 64))
        possible = [np.log1p(np.exp(second - first)) for first in (0, a) for second in (0, b)]
        seen = np.argmin(np.abs(losses[:, None] - np.array(possible)), axis=1)
        np.testing.assert_allclose(losses, np.array(possible)[seen], rtol=1e-5)
        assert np.bincount(seen, minlength=4).min() > 5  # 16 each on average


def test_adversarial_is_the_loss_and_gradient_at_fixed_perturbed_images():
    smoothing = 0.2
    perturbed = sign_adversary(Classifier(VARIABLES, NETWORK), IMAGES, LABELS, KEY)
    (loss, _), grads = evaluate(objectives.adversarial(sign_adversary, smoothing))
    np.testing.assert_allclose(loss, by_hand(VARIABLES, perturbed, smoothing), rtol=1e-5)
    assert loss > by_hand(VARIABLES, IMAGES, smoothing)

    fixed = objectives.adversarial(lambda *_: perturbed, smoothing)
    (_, _), expected = evaluate(fixed)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads, expected
    )

    # The test can tell: with the gradient through the adversary it would be another one.
    def through(variables):
        moving = sign_adversary(Classifier(variables, NETWORK), IMAGES, LABELS, KEY)
        return objectives.natural(smoothing)(NETWORK, variables, moving, LABELS, KEY)[0]

    other = jax.grad(through)(VARIABLES)
    first = lambda tree: tree["params"]["Dense_0"]["kernel"]  # noqa: E731
    assert not np.allclose(first(other), first(expected), rtol=1e-2, atol=1e-3)


def test_half_half_is_the_mean_of_both_losses():
    smoothing = 0.1
    perturbed = sign_adversary(Classifier(VARIABLES, NETWORK), IMAGES, LABELS, KEY)
    (loss, (_, metrics)), grads = evaluate(objectives.half_half(sign_adversary, smoothing))
    halves = [by_hand(VARIABLES, x, smoothing) for x in (IMAGES, perturbed)]
    np.testing.assert_allclose(loss, np.mean(halves), rtol=1e-5)

    separate = [
        evaluate(objectives.natural(smoothing)),
        evaluate(objectives.adversarial(sign_adversary, smoothing)),
    ]
    jax.tree.map(
        lambda g, a, b: np.testing.assert_allclose(g, (a + b) / 2, rtol=1e-4, atol=1e-6),
        grads,
        *(g for _, g in separate),
    )
    accuracies = [aux[1]["accuracy"] for (_, aux), _ in separate]
    assert metrics["accuracy"] == pytest.approx(np.mean(accuracies))


def test_the_adversary_gets_the_labels_and_the_key():
    seen = []

    def spy(classifier, images, labels, key):
        seen.append((labels, jax.random.key_data(key)))
        return images

    objectives.adversarial(spy)(NETWORK, VARIABLES, IMAGES, LABELS, jax.random.key(42))
    np.testing.assert_array_equal(seen[0][0], LABELS)
    np.testing.assert_array_equal(seen[0][1], jax.random.key_data(jax.random.key(42)))


class Normalised(nn.Module):
    """Batch normalisation and a dense layer."""

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(len(x), -1)
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train, momentum=0.5)(x))


@pytest.mark.parametrize("kind", ["adversarial", "half_half"])
def test_examples_are_made_in_evaluation_mode_and_the_loss_taken_in_training_mode(kind):
    network = Network(Normalised())
    variables = network.init(jax.random.key(3), (2, 2, 1))
    seen = []

    def adversary(classifier, images, labels, key):
        seen.append(classifier(images))
        return images + 2

    _, (collections, _) = getattr(objectives, kind)(adversary)(
        network, variables, IMAGES, LABELS, KEY
    )
    np.testing.assert_array_equal(seen[0], network(variables, IMAGES))
    # The statistics move by half, from 0, to the mean of the images that went through.
    flat = np.asarray(IMAGES).reshape(6, -1)
    mean = {"adversarial": flat.mean(0) + 2, "half_half": flat.mean(0) + 1}[kind]
    moved = collections["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(moved, mean / 2, rtol=1e-5)


@pytest.mark.parametrize("kind", ["adversarial", "half_half"])
def test_without_budget_they_are_the_natural_loss(kind):
    adversary = adversaries.prescribed(attacks.PGD(norm="linf", steps=2), 0.0)
    (loss, _), grads = evaluate(getattr(objectives, kind)(adversary))
    (expected, _), expected_grads = evaluate(objectives.natural())
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads, expected_grads
    )
