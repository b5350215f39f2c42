"""L0: how many units are not exactly zero.

Units are entries, or pixels, whatever the number of channels of one that change: arrays are
`[units, channels]`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from prunejax.norms.geometry import Array, largest, nonzero, rescale, total_length
from prunejax.norms.norm import LOWER, UPPER, Norm


def _features(array: Array) -> Array:
    return array.reshape(-1, 1)


def _pixels(array: Array) -> Array:
    return array.reshape(-1, array.shape[-1]) if array.ndim >= 3 else _features(array)


def _length(units: Array) -> Array:
    return jnp.sum(jnp.any(units != 0, axis=1)).astype(jnp.float32)


def _dual_length(units: Array) -> Array:
    return jnp.max(jnp.sum(jnp.abs(units), axis=1))


def _keep_near(magnitude: Array, reach: Array, eps: Array) -> Array:
    # magnitude^2 - (magnitude - reach)^2, written without cancellation
    return _keep_steep(2.0 * magnitude - reach, reach, eps)


def _keep_steep(slope: Array, reach: Array, eps: Array) -> Array:
    kept = largest(jnp.sum(slope * reach, axis=1), jnp.floor(eps))
    return jnp.where(kept[:, None], reach, 0.0)


def _unit(grad: Array, free: Array) -> Array:
    grad = rescale(grad)
    return grad / nonzero(total_length(grad))


def _sample(key: Array, image: Array, eps: Array) -> Array:
    return jax.random.uniform(key, image.shape, minval=LOWER, maxval=UPPER) - image


L0 = Norm(
    name="l0",
    dual="linf",
    flatten=_features,
    length=_length,
    dual_length=_dual_length,
    shrink=_keep_near,
    climb=_keep_steep,
    gains=None,
    steepest=_unit,
    sample=_sample,
    unit="features",
)
L0_PIXELS = dataclasses.replace(L0, name="l0_pixels", flatten=_pixels, unit="pixels")
