"""Exactly the k lowest scores, without a sort."""

import jax
import jax.numpy as jnp


@jax.jit  # else the loop is compiled anew at each call outside jit
def keep_all_but_lowest(scores: jax.Array, count: jax.Array | int) -> jax.Array:
    """A boolean array that is False for exactly `count` entries: the lowest, ties by index.

    Of equal scores the one with the lower index is removed first. The k-th lowest score is found by
    bisection on the bits of the floats: 32 passes over the scores, where a sort of millions would
    be slow, and `count` may be a traced value.

    Args:
      scores: `[n]` float32, any values but NaN; infinities are allowed.
      count: how many to remove, in [0, n].

    Returns:
      `[n]` booleans.
    """
    ordered = _ordered_bits(scores)

    def refine(i, threshold):
        candidate = threshold | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        # The k-th lowest is at least `candidate` while fewer than k scores are below it.
        return jnp.where(jnp.sum(ordered < candidate) < count, candidate, threshold)

    kth_lowest = jax.lax.fori_loop(0, 32, refine, jnp.uint32(0))
    below, tied = ordered < kth_lowest, ordered == kth_lowest
    removed_ties = tied & (jnp.cumsum(tied) <= count - jnp.sum(below))
    return ~(below | removed_ties) | (count <= 0)


def _ordered_bits(x: jax.Array) -> jax.Array:
    """Unsigned integers in the order of the floats; -0.0 counts as 0.0."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    # On the bits: XLA drops `x + 0.0`, and float arithmetic may flush subnormal scores to zero.
    bits = jnp.where(bits == sign, jnp.uint32(0), bits)
    return jnp.where(bits & sign, ~bits, bits | sign)
