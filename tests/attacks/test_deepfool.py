"""DeepFool: its steps by hand, on boundaries that are no planes, and at the edge of the box."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import attacks
from tests.attacks.test_closed_form import KEY

# Three paraboloids over the unit square; class 0 wins at the image.
CENTRES = np.array([[0.8, 0.5], [0.7, 0.3], [0.7, 0.2]])
SLOPES = np.array([[3.0, 1.0], [2.0, 2.0], [5.0, 4.0]])
HEIGHTS = np.array([0.0, -0.5, -0.3])
IMAGE = np.array([0.55, 0.29])

DIRECTIONS = {  # and the dual norm
    "l2": (lambda w: w / np.linalg.norm(w), np.linalg.norm),
    "linf": (np.sign, lambda w: np.abs(w).sum()),
}


def paraboloids(images):
    return HEIGHTS - jnp.sum(SLOPES * (images[:, None] - CENTRES) ** 2, axis=2)


@pytest.mark.parametrize("norm", DIRECTIONS)
def test_steps_by_hand(norm):
    direction, dual = DIRECTIONS[norm]
    attack = attacks.DeepFool(norm=norm, overshoot=0.1)
    goal = attacks.Goal(jnp.array(0), None, paraboloids(jnp.float32(IMAGE)[None])[0])
    state = attack.init(paraboloids, jnp.float32(IMAGE), goal, KEY, jnp.inf)
    step, r, x, chosen = jax.jit(lambda s: attack.step(paraboloids, s)), np.zeros(2), IMAGE, []
    for _ in range(4):
        state = step(state)
        z = HEIGHTS - np.sum(SLOPES * (x - CENTRES) ** 2, axis=1)
        if z.argmax() == 0:
            gradients = -2 * SLOPES * (x - CENTRES)
            away = [np.abs(z[k] - z[0]) / dual(gradients[k] - gradients[0]) for k in (1, 2)]
            chosen.append(1 + int(np.argmin(away)))
            r = r + min(away) * direction(gradients[chosen[-1]] - gradients[0])
            x = IMAGE + 1.1 * r
        np.testing.assert_allclose(state.x, x, atol=1e-4)
    assert chosen == [2, 1]  # where class 2 was near, class 1 is nearer from there
    assert state.found.success
    np.testing.assert_allclose(state.found.image, x, atol=1e-4)


@pytest.mark.parametrize(("after", "direction"), [(9, [0.6, 0.8]), (10, [0, 1])])
def test_what_the_box_stops_counts_as_zero_after_a_fifth_of_the_steps(after, direction):
    """At 1 an entry cannot rise any more; 10 of 50 steps are a fifth."""
    image, w = jnp.array([1.0, 0.2]), np.array([3.0, 4.0])
    attack = attacks.DeepFool(steps=50, overshoot=0.0)

    def classifier(images):
        rise = images @ w - 5.8  # -2 at the image
        return jnp.stack([jnp.zeros_like(rise), rise], axis=1)

    goal = attacks.Goal(jnp.array(0), None, classifier(image[None])[0])
    state = attack.init(classifier, image, goal, KEY, jnp.inf)
    state = attack.step(classifier, state._replace(step=jnp.array(after)))
    np.testing.assert_allclose(state.r, 2 / (w @ direction) * np.array(direction), atol=2e-5)
