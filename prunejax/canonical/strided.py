"""Gradients of strided convolutions, without the zeros between their pixels."""

import jax
import jax.numpy as jnp
from jax import lax

from prunejax.canonical.stored import stored


def applies(
    lhs,
    rhs,
    *,
    lhs_dilation,
    rhs_dilation,
    window_strides,
    feature_group_count,
    batch_group_count,
    **_,
):
    """On a CPU, the gradient of a planar convolution of stride s > 1 with respect to its input."""
    once = {*rhs_dilation, *window_strides, feature_group_count, batch_group_count} == {1}
    dilated = once and lhs.ndim == 4 and {*lhs_dilation} != {1} and 0 not in (lhs.size, rhs.size)
    return dilated and jax.default_backend() == "cpu" and jnp.issubdtype(lhs.dtype, jnp.floating)


def convolve(lhs, rhs, *, lhs_dilation, padding, precision, preferred_element_type, **_):
    """A convolution of an image with s - 1 zeros between its pixels, without the zeros.

    Each pixel is multiplied by the whole kernel, in one matrix product. Pixel i lies at s i + low,
    so its product with tap t belongs to output s i + low - t. Outputs that are congruent modulo s
    get the same taps: they are summed by themselves, and then laid between each other. XLA would
    multiply the zeros.
    """
    (rows, columns), kernel, (s, r) = lhs.shape[1:3], rhs.shape[:2], lhs_dilation
    outputs = [
        max(0, (n - 1) * stride + sum(pad) - k + 2)
        for n, stride, pad, k in zip((rows, columns), (s, r), padding, kernel, strict=True)
    ]
    high, wide = -(-outputs[0] // s), -(-outputs[1] // r)
    dtype = jnp.promote_types(lhs.dtype, jnp.float32)
    products = lax.dot_general(
        lhs, rhs, (((3,), (2,)), ((), ())), precision=precision, preferred_element_type=dtype
    )

    def congruent(row, column):
        """Outputs s i + row, r j + column: of each tap the products of pixels i + down, j + on."""
        total = jnp.zeros((len(lhs), high, wide, rhs.shape[3]), dtype)
        for t, down in _taps(row, s, kernel[0], padding[0][0]):
            for u, on in _taps(column, r, kernel[1], padding[1][0]):
                moved = (-down, high + down - rows, 0), (-on, wide + on - columns, 0)
                edges = ((0, 0, 0), *moved, (0, 0, 0))
                total += lax.pad(products[:, :, :, t, u], jnp.zeros((), dtype), edges)
        return total

    between = [jnp.stack([congruent(row, column) for column in range(r)], 3) for row in range(s)]
    out = jnp.stack(between, 2).reshape(len(lhs), high * s, wide * r, rhs.shape[3])
    out = stored(out[:, : outputs[0], : outputs[1]], rhs)
    return out.astype(lhs.dtype if preferred_element_type is None else preferred_element_type)


def _taps(first: int, stride: int, size: int, low: int) -> list[tuple[int, int]]:
    """The taps t that outputs stride i + first get, and of which pixel: of i + that."""
    taps = range((low - first) % stride, size, stride)
    return [(t, (first + t - low) // stride) for t in taps]
