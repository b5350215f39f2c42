"""Layers that stay fast on every backend."""

import jax
import jax.numpy as jnp


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Maximum over disjoint 2x2 windows, `[B, H, W, C]` -> `[B, H // 2, W // 2, C]`.

    Written as maxima of strided slices: on CPU its gradient is twenty times faster than that of
    `flax.linen.max_pool`, from which it differs only where a window's maximum is attained twice:
    the gradient is then split between the tied entries.
    """
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    x = x[:, :height, :width]
    rows = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])


def flatten(x: jax.Array) -> jax.Array:
    """`[B, ...]` -> `[B, features]`, in the order height, width, channel."""
    return x.reshape(x.shape[0], -1)
