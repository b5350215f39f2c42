"""Convolutions of few channels, which become convolutions of as many as are fast."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from prunejax.canonical import plain
from prunejax.canonical.plain import padded

# Up to 16 features XLA's CPU compiler takes code that is 2 to 7 times slower than that for 32, and
# with an odd number of inputs that for 17 to 32 is slow too (jaxlib 0.10; in 0.12 1.2 to 3 times).
_FAST_CHANNELS = 32


def applies(
    lhs,
    rhs,
    *,
    window_strides,
    padding,
    lhs_dilation,
    rhs_dilation,
    feature_group_count,
    batch_group_count,
    **_,
):
    """A planar convolution of few channels on a CPU: the first layers of most networks."""
    once = {*lhs_dilation, *rhs_dilation, feature_group_count, batch_group_count} == {1}
    if lhs.ndim != 4 or not once or jax.default_backend() != "cpu":
        return False
    return _neighbours(lhs.shape, rhs.shape, window_strides[1], padding[1]) > 0


def convolve(lhs, rhs, *, window_strides, padding, **params):
    """The same convolution with pixels that lie beside each other as channels of one.

    A block of n outputs is one pixel with n times the features; it reads blocks of n x stride
    pixels, each one pixel with that many times the inputs. In memory nothing moves.
    """
    stride, (low, high) = window_strides[1], padding[1]
    (number, height, width, inputs), (rows, size, _, features) = lhs.shape, rhs.shape
    n = _neighbours(lhs.shape, rhs.shape, stride, padding[1])
    outputs = (width + low + high - size) // stride + 1
    blocks, taps = -(-outputs // n), -(-(stride * (n - 1) + size) // (stride * n))
    block, columns = stride * n, (blocks - 1 + taps) * stride * n
    lhs = padded(lhs, {2: (low, columns - width - low)})
    # Output r of a block sees the kernel stride x r pixels farther on.
    starts = range(0, block, stride)
    parts = [padded(rhs, {1: (start, taps * block - size - start)}) for start in starts]
    out = plain.convolve(
        lhs.reshape(number, height, columns // block, block * inputs),
        jnp.stack(parts, -2).reshape(rows, taps, block * inputs, n * features),
        window_strides=(window_strides[0], 1),
        padding=(padding[0], (0, 0)),
        **params,
    )
    return out.reshape(number, out.shape[1], blocks * n, features)[:, :, :outputs]


def _neighbours(lhs: Sequence[int], rhs: Sequence[int], stride: int, padding: Sequence[int]) -> int:
    """How many outputs beside each other should be one with more features; 0 for as it is."""
    inputs, features = rhs[2:]
    outputs = (lhs[2] + sum(padding) - rhs[1]) // stride + 1
    most = min(_FAST_CHANNELS // max(inputs, features), outputs)
    if most > 1:
        return 2 ** (most.bit_length() - 1)
    if most == 1 and inputs % 2 == 1 and inputs > 1 and outputs > 1:
        return 1 if stride % 2 == 0 else 2
    return 0
