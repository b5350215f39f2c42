"""Sparse-RS: a black-box L0 attack by random search over sets of pixels and their colours."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import norms
from prunejax.attacks.random_search import Point, RandomSearch, RandomSearchState, flipped

# From each of these queries on, alpha is alpha_init over the number beside it.
SCHEDULE_FROM = (0, 51, 201, 501, 1001, 2001, 4001, 6001, 8001)
SCHEDULE_DIVISORS = (2, 4, 5, 6, 8, 10, 12, 15, 20)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparseRS(RandomSearch):
    """Random search over which k pixels to change, and to which corner of the colour cube.

        M <- (M without A) with B,  |A| = |B| = max(floor(alpha_i k), 1)
        A from M and B from outside of it, uniformly; B gets random colours in {0, 1}^C

    A proposal that raises the loss is kept. The start are k random pixels of random colours,
    k = floor(eps). alpha_i falls from alpha_init / 2 to alpha_init / 20 at the queries 50, 200,
    500, 1000, 2000, 4000, 6000 and 8000. Where one pixel is swapped, a colour that equals the clean
    one is drawn anew. Where all pixels are chosen, those that would be swapped get new colours.

    Croce, Andriushchenko et al. (2022), "Sparse-RS: a versatile framework for query-efficient
    sparse black-box adversarial attacks", algorithm 1 and appendix. Counts pixels, all channels
    together, in "l0_pixels"; each channel value of a pixel by itself in "l0".

    Attributes:
      steps: proposals, a query each; 10,000 as in the paper for untargeted attacks.
      alpha_init: share of the k pixels swapped at once, before the schedule, in (0, 1]; 0.3 as in
        the paper for untargeted attacks, which takes 0.1 for targeted ones (with 100,000 queries
        and the cross-entropy).

    Raises:
      ValueError: a hyperparameter out of its range, an unknown loss, or a norm that it does not
        measure in.
    """

    norm: str = "l0_pixels"
    steps: int = 10_000
    alpha_init: float = 0.3
    rescale_schedule: bool = True

    supported: ClassVar[tuple[str, ...]] = ("l0_pixels", "l0")
    reference: ClassVar[str] = "Croce et al. 2022"

    def __post_init__(self):
        super().__post_init__()
        self._numbers("alpha_init", within="(0, 1]")

    def swaps(self, step: jax.Array, k: jax.Array) -> jax.Array:
        """How many of the k pixels leave after so many steps, at least 1; all are scalars."""
        query = self.query_of_schedule(step + 1)
        stage = jnp.sum(query >= jnp.array(SCHEDULE_FROM)) - 1
        alpha = (self.alpha_init / np.array(SCHEDULE_DIVISORS)).astype("f4")
        return jnp.maximum(jnp.floor(jnp.array(alpha)[stage] * k + 1e-4), 1)

    def start(self, key, image, eps) -> Point:
        clean = self._units(image)
        k = _pixels_to_change(eps, len(clean))
        key_set, key_colour = jax.random.split(key)
        chosen = random_subsets(key_set, jnp.ones((1, len(clean)), bool), k)[0]
        colours = jax.random.bernoulli(key_colour, shape=clean.shape).astype(jnp.float32)
        x = jnp.where(chosen[:, None], colours, clean)
        return Point(x.reshape(image.shape), chosen)

    def propose(self, key, state: RandomSearchState) -> Point:
        clean, x, chosen = self._units(state.image), self._units(state.best.x), state.best.chosen
        k = _pixels_to_change(state.eps, len(clean))
        # Of all pixels those that leave come back, in new colours.
        all_chosen = k == len(clean)
        most = jnp.where(all_chosen, k, jnp.minimum(k, len(clean) - k))
        swaps = jnp.minimum(self.swaps(state.step, k), most)
        spare = jnp.where(all_chosen, chosen, ~chosen)
        key_set, key_colour, key_other = jax.random.split(key, 3)
        leave, enter = random_subsets(key_set, jnp.stack([chosen, spare]), swaps)

        corner = jax.random.bernoulli(key_colour, shape=clean.shape)
        same = jnp.all(corner == clean, axis=1) & (swaps == 1)
        other = flipped(key_other, corner)
        colours = jnp.where(same[:, None], other, corner).astype(jnp.float32)
        x = jnp.where(enter[:, None], colours, jnp.where(leave[:, None], clean, x))
        return Point(x.reshape(state.image.shape), (chosen & ~leave) | enter)

    def _units(self, image: jax.Array) -> jax.Array:
        """`[pixels, channels]`; in "l0" `[features, 1]`."""
        return norms.get(self.norm).flatten(image)


def _pixels_to_change(eps: jax.Array, pixels: int) -> jax.Array:
    return jnp.minimum(jnp.floor(eps), pixels)


def random_subsets(key: jax.Array, among: jax.Array, count: jax.Array) -> jax.Array:
    """A uniformly random subset of `count` units of each set, as masks.

    Every unit draws a number; those below a threshold are taken, and the threshold is bisected
    until there are `count` of them. A sort takes much longer on a CPU.

    Args:
      key: for all sets, which are disjoint or equal; of equal sets the subsets are equal.
      among: `[sets, units]`, the sets as masks.
      count: how many, at most as many as the smallest set has.
    """
    most = 2**30
    numbers = jnp.where(among, distinct_numbers(key, among.shape[1]), most)

    def halve(bracket):
        low, high, below_high = bracket
        middle = low + (high - low) // 2
        below = jnp.sum(numbers < middle[:, None], axis=1, dtype=jnp.int32)
        enough = below >= count
        return (
            jnp.where(enough, low, middle),
            jnp.where(enough, middle, high),
            jnp.where(enough, below, below_high),
        )

    low = jnp.zeros(len(among), jnp.int32)
    bracket = (low, low + most, jnp.sum(among, axis=1, dtype=jnp.int32))
    threshold = jax.lax.while_loop(lambda b: jnp.any(b[2] != count), halve, bracket)[1]
    return numbers < threshold[:, None]


def distinct_numbers(key: jax.Array, units: int) -> jax.Array:
    """`[units]` integers in [0, 2^30) that all differ, in a random order.

    The first bits are random, the last ones the unit's place. In large images many draw the same
    first bits, so the places are shuffled for each key, by an odd factor and an offset.
    """
    place_bits = (units - 1).bit_length()
    words = jax.random.bits(key, (units,))
    # Factor and offset are last bits of two words, of which only the first bits are used below.
    place = (words[0] | 1) * jnp.arange(units, dtype=jnp.uint32) + words[-1]
    first = words >> (2 + place_bits) << place_bits
    return (first | (place & (2**place_bits - 1))).astype(jnp.int32)
