"""Reasons to doubt a result are found where they are, and only there."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import attacks
from prunejax.classifier import Classifier

KEY = jax.random.key(0)
IMAGES = np.linspace(0.1, 0.9, 8, dtype=np.float32).reshape(8, 1)
LABELS = np.zeros(8, int)


def diagnostics(apply_fn, attack=None, variables=None, **options):
    attack = attack or attacks.PGD(steps=2)
    classifier = Classifier(variables, apply_fn)
    options = {"eps": 0.05, "key": KEY, **options}
    return attacks.run(attack, classifier, IMAGES, LABELS, **options).diagnostics


def healthy(_, images):
    x = images[:, 0]
    return jnp.stack([jnp.ones_like(x), x - 1, -x - 2, x - 5], axis=1)


def test_a_healthy_network_raises_no_doubt():
    found = diagnostics(healthy)
    assert found.warnings() == []
    assert found.inspected == 8


def flat_above_a_half(_, images):
    x = jnp.minimum(images[:, 0], 0.5)
    return jnp.stack([jnp.ones_like(x), x - 1], axis=1)


def test_zero_gradients_are_counted():
    found = diagnostics(flat_above_a_half)
    assert found.zero_gradient == 0.5
    assert "50.0% of the images have a zero gradient" in found.warnings()[0]


def saturated(_, images):
    return healthy(None, images) * 1000


def test_the_cross_entropy_saturates_where_the_margin_does_not():
    assert diagnostics(saturated).zero_gradient == 0
    attack = attacks.PGD(steps=2, loss="cross_entropy")
    assert diagnostics(saturated, attack).zero_gradient == 1


def test_probabilities_are_noticed():
    found = diagnostics(lambda _, images: jax.nn.softmax(healthy(None, images)))
    assert found.probabilities
    assert any("softmax" in warning for warning in found.warnings())


def broken_above_a_half(_, images):
    x = images[:, 0]
    return jnp.stack([jnp.ones_like(x), jnp.where(x > 0.5, jnp.nan, x - 1)], axis=1)


def test_what_is_not_finite_is_counted_and_stops_nobody():
    attack = attacks.PGD(steps=2, random_start=False)
    result = attacks.run(
        attack, Classifier(None, broken_above_a_half), IMAGES, LABELS, key=KEY, eps=0.0
    )
    assert result.diagnostics.non_finite == 0.5
    assert result.images.shape == IMAGES.shape


def test_a_network_that_does_not_repeat_itself_is_noticed():
    draws = np.random.default_rng(0)

    def noisy(_, images):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        noise = jax.pure_callback(
            lambda: np.float32(draws.normal()), shape, vmap_method="broadcast_all"
        )
        return healthy(None, images) + jax.lax.stop_gradient(noise) * jnp.arange(4)

    found = diagnostics(noisy)
    assert found.unrepeatable > 0.01
    assert any("repeated passes" in warning for warning in found.warnings())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claims(attacks.PGD):
    """Claims success at this place."""

    x: float = 0.0

    def result(self, classifier, state):
        x = jnp.full_like(state.image, self.x)
        return attacks.Found(x, jnp.array(True), jnp.float32(0))


@pytest.mark.parametrize(
    ("x", "eps", "outside", "unconfirmed"),
    [(0.5, 0.05, 8, 8), (0.5, 1.0, 0, 8), (1.5, 1.0, 8, 8)],
)
def test_false_claims_are_counted(x, eps, outside, unconfirmed):
    found = diagnostics(healthy, Claims(steps=1, x=x), eps=eps)
    assert (found.outside, found.unconfirmed) == (outside, unconfirmed)
    assert len(found.warnings()) == (outside > 0) + (unconfirmed > 0)


@pytest.mark.parametrize(
    ("classes", "options", "loss"),
    [(2, {}, "margin"), (3, {}, "dlr"), (3, {"targets": 2}, "margin"), (4, {"targets": 2}, "dlr")],
)
def test_a_loss_with_too_few_classes_is_replaced_and_says_so(classes, options, loss):
    attack = attacks.PGD(steps=1, loss="dlr", **options)
    found = diagnostics(lambda _, images: healthy(None, images)[:, :classes], attack)
    assert (found.asked_loss, found.loss) == ("dlr", loss)
    assert ("'margin' was used" in "".join(found.warnings())) == (loss == "margin")


def test_passes_through_the_network_are_counted():
    images = np.array([[0.1], [0.3], [0.45], [0.6]], np.float32)
    # PGD climbs 0.1 a step; class 1 begins at 0.5.
    classifier = Classifier(None, lambda _, x: jnp.stack([jnp.full(len(x), 0.5), x[:, 0]], axis=1))
    attack = attacks.PGD(steps=3, relative_step=1 / 3, random_start=False, restarts=2)
    result = attacks.run(attack, classifier, images, np.zeros(4, int), key=KEY, eps=0.3)
    assert np.array_equal(result.success, [False, True, True, True])
    # Two tries of 3 steps and a last look; a look at 0.6, the first beyond 0.5, in step 4 or in
    # the last look; at 0.55 in step 2; no attack.
    assert np.array_equal(result.backwards, [6, 3, 2, 0])
    assert np.array_equal(result.forwards, [8, 4, 3, 0])
