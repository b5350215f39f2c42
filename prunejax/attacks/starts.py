"""Where attacks that follow the decision boundary begin: adversarial noise, pulled to the boundary.

Only whether the goal is reached is asked for, so that decision-based attacks can use it.
"""

import jax
import jax.numpy as jnp

from prunejax import norms
from prunejax.attacks.attack import Attack, Found, logits_of
from prunejax.attacks.goal import Goal

# The share of the way so far that the next try is allowed. For Brendel & Bethge on a robust network
# 0.8 to 0.95 do alike: a third nearer in L2 than from the nearest of all noise images.
NEARER = 0.9


def boundary_start(
    attack: Attack,
    classifier,
    image: jax.Array,
    goal: Goal,
    key: jax.Array,
    tries: int,
    halvings: int,
) -> Found:
    """A point on the boundary, on the way to one of several noise images that are adversarial.

    On the way to each, one point is tried that is nearer than the nearest adversarial one so far by
    a fixed share, until it is not adversarial; then the next noise image has its turn. What is left
    is pulled to the boundary. Costs `tries + halvings` forward passes, of which the halvings are
    wasted where no try succeeds: nothing is found then.
    """
    geometry = norms.get(attack.norm)

    def attempt(_, state):
        number, best = state
        delta = noise(jax.random.fold_in(key, number), image.shape, number) - image
        length = jnp.minimum(geometry.distance(delta), NEARER * best.distance)
        x = jnp.clip(image + geometry.project(delta, image, length), 0, 1)
        adversarial = goal.reached(logits_of(classifier, x))
        best = attack.nearest(best, image, x, adversarial)
        return jnp.where(adversarial, number, number + 1), best

    first = jnp.array(0), attack.nothing_found(image)
    _, start = jax.lax.fori_loop(0, tries, attempt, first)
    x = pull_to_boundary(attack.norm, classifier, image, goal, start.image, halvings)
    return attack.nearest(start, image, x, start.success)


def noise(key: jax.Array, shape: tuple[int, ...], number: jax.Array) -> jax.Array:
    """A random image; the first (number 0) is uniform noise, as usual.

    A network tends to give all images of such noise the same class. The others are of black and
    white blocks, random in their size and in their share of white, which hit more classes.
    """
    key_values, key_white, key_cells = jax.random.split(key, 3)
    values = jax.random.uniform(key_values, shape)
    white = jax.random.uniform(key_white)
    spatial = max(1, min(2, len(shape)))
    finest = max(shape[:spatial]).bit_length()
    cells = 2 ** jax.random.randint(key_cells, (), 1, finest + 1)  # along the longest side
    blocks = values
    for axis, size in enumerate(shape[:spatial]):
        index = jnp.arange(size) * jnp.minimum(cells, max(shape[:spatial])) // max(shape[:spatial])
        blocks = jnp.take(blocks, index, axis=axis)
    return jnp.where(number == 0, values, (blocks < white).astype(jnp.float32))


def pull_to_boundary(
    norm: str,
    classifier,
    image: jax.Array,
    goal: Goal,
    x: jax.Array,
    halvings: int,
) -> jax.Array:
    """The point nearest to the image on the way from the adversarial x where still adversarial.

    The way are the projections of x on the norm's balls around the image: the straight line in L2,
    the entries clipped alike in Linf. Its length is bisected down to `2 ** -halvings` of it.
    """
    geometry = norms.get(norm)
    length = geometry.distance(x - image)

    def halve(_, bracket):
        low, high, nearest = bracket
        middle = (low + high) / 2
        delta = geometry.project(x - image, image, middle * length)
        point = jnp.clip(image + delta, 0, 1)
        adversarial = goal.reached(logits_of(classifier, point))
        return (
            jnp.where(adversarial, low, middle),
            jnp.where(adversarial, middle, high),
            jnp.where(adversarial, point, nearest),
        )

    return jax.lax.fori_loop(0, halvings, halve, (0.0, 1.0, x))[2]
