"""Layers that several networks share, in forms that stay fast on every backend."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def conv(
    features: int, size: int, strides: int = 1, groups: int = 1, name: str | None = None
) -> nn.Conv:
    """A convolution as it stands before batch normalisation: without bias, padded by `size // 2`.

    The padding is the same on both sides, also where a stride would let Flax's "SAME" pad one
    side only: so published networks do it.
    """
    return nn.Conv(
        features,
        (size, size),
        strides,
        padding=size // 2,
        feature_group_count=groups,
        use_bias=False,
        name=name,
    )


def norm(train: bool, name: str | None = None) -> nn.BatchNorm:
    """Batch normalisation whose running statistics move by a tenth towards those of the batch."""
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, name=name)


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
