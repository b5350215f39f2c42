"""sigma-zero: its steps by hand, with Adam, threshold and schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import attacks
from tests.attacks.test_closed_form import KEY

STEPS, RATE, SIGMA, T = 12, 0.5, 0.05, 0.2


def eta(step):
    return RATE * (0.1 + 0.9 * (1 + np.cos(np.pi * step / STEPS)) / 2)


@pytest.mark.parametrize(("norm", "shape"), [("l0", (6,)), ("l0_pixels", (1, 3, 2))])
def test_steps_by_hand(norm, shape):
    """Features by themselves, and three pixels of two channels."""
    channels = shape[-1] if norm == "l0_pixels" else 1

    def squares(delta):
        return np.repeat((delta.reshape(-1, channels) ** 2).sum(axis=1), channels)

    image = np.array([0.5, 0.1, 0.9, 0.4, 0.0, 0.7])
    w, b = np.array([1.0, -0.8, 0.6, 0.4, 0.9, -0.1]), -1.4  # the margin is w x + b

    def classifier(images):
        margin = images.reshape(len(images), -1) @ w + b
        return jnp.stack([jnp.zeros_like(margin), margin], axis=1)

    options = {"learning_rate": RATE, "sigma": SIGMA, "tau": 0.1, "tau_step": T}
    attack = attacks.SigmaZero(norm=norm, steps=STEPS, **options)
    step = jax.jit(lambda state: attack.step(classifier, state))
    x = jnp.float32(image).reshape(shape)
    state = attack.init(classifier, x, attacks.Goal(jnp.array(0)), KEY, jnp.inf)
    delta, m, v, tau, crossed, zeroed = np.zeros(6), np.zeros(6), np.zeros(6), 0.1, [], 0
    for number in range(STEPS):
        margin = w @ (image + delta) + b
        crossed.append(bool(margin > 0))
        units = len(image) // channels
        grad = 2 * SIGMA * delta / (squares(delta) + SIGMA) ** 2 / units - (0 if crossed[-1] else w)
        grad /= max(np.abs(grad).max(), 1e-12)
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        adam = m / (1 - 0.9 ** (number + 1)) / (np.sqrt(v / (1 - 0.999 ** (number + 1))) + 1e-8)
        delta = np.clip(image + delta - eta(number) * adam, 0, 1) - image
        tau = np.clip(tau + T * eta(number + 1) * (1 if crossed[-1] else -1), 0, 1)
        tiny = np.sqrt(squares(delta)) < tau
        zeroed += np.sum(tiny & (delta != 0))
        delta = np.where(tiny, 0, delta)
        state = step(state)
        np.testing.assert_allclose(state.tau, tau, atol=1e-6)
        np.testing.assert_allclose(state.delta.ravel(), delta, atol=1e-4)
    assert set(crossed) == {True, False}
    assert zeroed
    assert state.found.success
