"""An array that is computed once, however many read it."""

import math

import jax
import jax.numpy as jnp
from jax import lax


def stored(array: jax.Array, witness: jax.Array) -> jax.Array:
    """The array, which XLA's CPU compiler computes once and keeps in memory.

    What takes few operations it would compute anew for each that reads it, also where those only
    move entries, which takes ten times as long as reading them. Optimization barriers do not keep
    jaxlib 0.10 from that. So there is a branch of which the compiler cannot know that it is always
    taken: a square is 0 or 1 modulo 4.

    Elsewhere it is the array as it is.

    Args:
      array: `[N, ...]`.
      witness: not empty, of any value; where devices share N, one that each holds whole.
    """
    if jax.default_backend() != "cpu":
        return array
    first = witness.reshape(-1)[0].astype(jnp.float32)
    bits = lax.bitcast_convert_type(first, jnp.int32)
    # A last axis of one entry would be copied entry by entry.
    shape = array.shape if array.shape[-1] > 1 else (len(array), math.prod(array.shape[1:]))
    kept = lax.cond(bits * bits & 2 == 0, lambda x: x, jnp.zeros_like, array.reshape(shape))
    return kept.reshape(array.shape)
