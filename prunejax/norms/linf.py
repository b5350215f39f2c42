"""Linf: the largest change of an entry."""

import jax
import jax.numpy as jnp

from prunejax.norms.geometry import Array, fill_evenly, max_length, total_length
from prunejax.norms.norm import Norm


def _cap(magnitude: Array, reach: Array, eps: Array) -> Array:
    return jnp.minimum(reach, eps)


def _sample(key: Array, image: Array, eps: Array) -> Array:
    return eps * jax.random.uniform(key, image.shape, minval=-1.0, maxval=1.0)


def _sign(grad: Array, free: Array) -> Array:
    return jnp.sign(grad)


LINF = Norm(
    name="linf",
    dual="l1",
    flatten=jnp.ravel,
    length=max_length,
    dual_length=total_length,
    shrink=_cap,
    climb=_cap,
    gains=fill_evenly,
    steepest=_sign,
    sample=_sample,
)
