"""Random shifts and left-right flips of a batch, as pure functions of a key on the device.

What is drawn for an image depends on the key and on the image's position in the batch alone,
so a batch's first n images are augmented alike whatever follows them. Source of the pair
(zero-padding by 4 with a random crop, and flips): K. He et al., "Deep Residual Learning for
Image Recognition", CVPR 2016, section 4.2.
"""

from __future__ import annotations

import operator

import jax
import jax.numpy as jnp


def random_shift(key: jax.Array, images: jax.Array, pad: int) -> jax.Array:
    """Moves each image by up to `pad` pixels; what moves in from outside is zero.

    Each image is padded with `pad` zeros on all four sides and cropped back to its size at an
    offset that is uniform over the `(2 pad + 1)^2` possible ones.

    Args:
      key: a PRNG key, for the whole batch.
      images: `[B, H, W, C]` of any dtype.
      pad: the largest shift, in pixels, 0 or more; static.

    Returns:
      Images of the same shape and dtype.

    Raises:
      ValueError: if `images` is not of rank 4 or `pad` is negative.
    """
    _check_images(images)
    pad = operator.index(pad)
    if pad < 0:
        raise ValueError(f"pad={pad}: accepted is a number of pixels of 0 or more.")
    if pad == 0:
        return jnp.asarray(images)

    def crop(padded: jax.Array, example_key: jax.Array) -> jax.Array:
        row, column = jax.random.randint(example_key, (2,), 0, 2 * pad + 1, dtype=jnp.int32)
        return jax.lax.dynamic_slice(padded, (row, column, jnp.int32(0)), images.shape[1:])

    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    return jax.vmap(crop)(padded, _example_keys(key, images.shape[0]))


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image left to right with probability 1/2.

    Args:
      key: a PRNG key, for the whole batch.
      images: `[B, H, W, C]` of any dtype.

    Returns:
      Images of the same shape and dtype.

    Raises:
      ValueError: if `images` is not of rank 4.
    """
    _check_images(images)
    images = jnp.asarray(images)
    flip = jax.vmap(jax.random.bernoulli)(_example_keys(key, images.shape[0]))
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)


def augment(key: jax.Array, images: jax.Array, *, shift: int = 0, flip: bool = False) -> jax.Array:
    """Shifts, then flips; either can be left out without changing what the other draws.

    Args:
      key: a PRNG key, for the whole batch.
      images: `[B, H, W, C]` of any dtype.
      shift: the largest shift in pixels, as `pad` of `random_shift`; static.
      flip: whether to apply `random_flip`; static.

    Returns:
      Images of the same shape and dtype.

    Raises:
      ValueError: if `images` is not of rank 4 or `shift` is negative.
    """
    if shift < 0:
        raise ValueError(f"shift={shift}: accepted is a number of pixels of 0 or more.")
    shift_key, flip_key = jax.random.split(key)
    images = random_shift(shift_key, images, shift)
    return random_flip(flip_key, images) if flip else images


def _example_keys(key: jax.Array, batch_size: int) -> jax.Array:
    # fold_in by position, not split: an example's key must not depend on the batch size.
    return jax.vmap(lambda position: jax.random.fold_in(key, position))(jnp.arange(batch_size))


def _check_images(images: jax.Array) -> None:
    if images.ndim != 4:
        raise ValueError(f"images has shape {images.shape}: accepted is rank 4, [B, H, W, C].")
