"""A convolution as it is, with its operands in the layout NHWC x HWIO -> NHWC."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax


def convolve(lhs, rhs, *, padding, **params):
    """The convolution; where XLA's CPU code is slow or wrong with padding, that is made before."""
    if _pads_badly(lhs, rhs, padding, **params):
        # Without the barrier XLA makes the zeros padding again.
        lhs = lax.optimization_barrier(padded(lhs, dict(enumerate(padding, start=1))))
        padding = ((0, 0),) * len(padding)
    batch, *space, features = range(lhs.ndim)
    numbers = lax.ConvDimensionNumbers(
        lhs_spec=(batch, features, *space),
        rhs_spec=(lhs.ndim - 1, lhs.ndim - 2, *range(lhs.ndim - 2)),
        out_spec=(batch, features, *space),
    )
    return lax.conv_general_dilated_p.bind(
        lhs, rhs, dimension_numbers=numbers, padding=padding, **params
    )


def _pads_badly(lhs, rhs, padding, *, lhs_dilation, **_):
    """Images that are smaller than the kernel, and cut ones.

    A 3 x 3 kernel on 2 x 2 pixels, as at the end of VGG-16: XLA compares sizes without padding and
    takes the larger of the two for the image, by code that is up to 125 times as slow. And where
    images are cut on one side and padded on the other, jaxlib 0.10 reads beyond them.
    """
    if jax.default_backend() != "cpu" or {*lhs_dilation} != {1}:
        return False
    is_kernel_larger = math.prod(rhs.shape[:-2]) > math.prod(lhs.shape[1:-1])
    return is_kernel_larger or min(map(min, padding), default=0) < 0


def padded(array: jax.Array, edges: Mapping[int, tuple[int, int]]) -> jax.Array:
    """Zeros before and behind along some axes, `{axis: (low, high)}`; negative numbers cut off."""
    edges = [(*edges.get(axis, (0, 0)), 0) for axis in range(array.ndim)]
    return lax.pad(array, jnp.zeros((), array.dtype), edges)
