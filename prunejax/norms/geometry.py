"""Geometry that several norms share, on flat arrays of magnitudes.

Two ways to find the one Lagrange multiplier that an optimum depends on. Where all entries grow in
fixed proportions until they meet the box, by filling (`fill_evenly`); else by bisection over the
*bit patterns* of float32: 31 halvings end at two neighbouring floats whatever the scale. Nothing
here sorts: on a CPU one sort of the 2 d breakpoints took 25 to 30 times as long as the whole
bisection.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array

# Bit patterns of the smallest normal and the largest finite float32: positive floats are ordered
# as their bit patterns are.
_SMALLEST = 0x00800000
_LARGEST = 0x7F7FFFFF


def as_float(array) -> Array:
    """As float32, in which all of this is done."""
    return jnp.asarray(array, jnp.float32)


def nonzero(scalar: Array) -> Array:
    """A divisor that is safe where the numerator vanishes with it."""
    return jnp.where(scalar > 0, scalar, 1.0)


def rescale(vector: Array) -> Array:
    """`vector` over its largest magnitude, so that squares of tiny gradients do not underflow."""
    largest = jnp.max(jnp.abs(vector))
    return jnp.where(largest > 0, vector / nonzero(largest), 0.0)


def max_length(vector: Array) -> Array:
    """Linf."""
    return jnp.max(jnp.abs(vector))


def euclidean_length(vector: Array) -> Array:
    """L2, without overflow or underflow of squares."""
    return max_length(vector) * jnp.sqrt(jnp.sum(rescale(vector) ** 2))


def total_length(vector: Array) -> Array:
    """L1."""
    return jnp.sum(jnp.abs(vector))


def _positive(bits: Array) -> Array:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _first(holds: Callable[[Array], Array], low: int, high: int) -> Array:
    """The smallest integer in (low, high] from which on `holds`; `high` if there is none below."""

    def halve(_, bracket):
        low, high = bracket
        middle = high - (high - low) // 2  # above low also when nothing is left to halve
        found = holds(middle)
        return jnp.where(found, low, middle), jnp.where(found, middle, high)

    steps = (high - low - 1).bit_length()
    return jax.lax.fori_loop(0, steps, halve, (jnp.int32(low), jnp.int32(high)))[1]


def at_budget(path: Callable, length: Callable, eps: Array) -> Array:
    """The point of length eps on a path of magnitudes that shrink as the multiplier grows.

    Between neighbouring floats the multiplier can no longer tell points apart, but the path can
    still jump by more than rounding (many entries moving together, ties): there it is blended.
    """
    bits = _first(lambda bits: length(path(_positive(bits))) <= eps, _SMALLEST, _LARGEST)
    inner, outer = path(_positive(bits)), path(_positive(bits - 1))
    inside = length(inner)
    share = (eps - inside) / nonzero(length(outer) - inside)
    return inner + jnp.clip(share, 0.0, 1.0) * (outer - inner)


def fill_evenly(rate: Array, limit: Array, total: Array) -> Array:
    """min(t rate, limit) with the t >= 0 at which that adds up to `total`, or all of `limit`.

    Entries that reach their limit leave the others a larger share, which can only make more of them
    reach theirs: a few rounds, and exact once no more do. (Newton's method from t = 0.)
    """

    def full_at(t):
        return (limit <= 0) | (t * rate >= limit)

    def newton(t):
        full = full_at(t)
        left = total - jnp.sum(jnp.where(full, limit, 0.0))
        return left / nonzero(jnp.sum(jnp.where(full, 0.0, rate)))

    # The state are the last two t: under `vmap`, a loop that carries masks takes twice as long.
    t, _ = jax.lax.while_loop(
        lambda ts: ts[1] > ts[0], lambda ts: (ts[1], newton(ts[1])), (jnp.float32(0), newton(0.0))
    )
    return jnp.where(full_at(t), limit, t * rate)


def largest(gain: Array, count: Array) -> Array:
    """Mask of the `count` largest entries of gain >= 0 (`[units]`), the first among equals."""

    def halve(_, carry):
        low, high, gain = carry
        middle = high - (high - low) // 2
        above = gain > _positive(middle)
        few = jnp.sum(above) <= count
        # What is decided is marked. In a loop's state gain is stored: where XLA computes it anew
        # for each use, rounded otherwise, more than `count` are chosen.
        gain = jnp.where(few & above, jnp.inf, jnp.where(few | above, gain, -jnp.inf))
        return jnp.where(few, low, middle), jnp.where(few, middle, high), gain

    start = jnp.int32(_SMALLEST), jnp.int32(_LARGEST), gain
    halvings = (_LARGEST - _SMALLEST - 1).bit_length()
    _, bits, gain = jax.lax.fori_loop(0, halvings, halve, start)
    above, tied = gain == jnp.inf, gain == _positive(bits)
    index, places = jnp.arange(gain.size), count - jnp.sum(above)
    end = _first(lambda end: jnp.sum(tied & (index < end)) >= places, -1, gain.size)
    return above | (tied & (index < end))
