"""L2: Euclidean length."""

import jax
import jax.numpy as jnp

from prunejax.norms.geometry import Array, euclidean_length, fill_evenly, nonzero, rescale
from prunejax.norms.norm import Norm


def _water_fill(magnitude: Array, reach: Array, eps: Array) -> Array:
    # In units of the largest entry and of eps, so that squares do not underflow.
    squares = fill_evenly(rescale(magnitude) ** 2, (reach / nonzero(eps)) ** 2, jnp.float32(1))
    return jnp.minimum(eps * jnp.sqrt(squares), reach)


def _proportional_gains(slope: Array, worth: Array, gap: Array) -> Array:
    return fill_evenly(slope**2, worth, gap)


def _unit(grad: Array, free: Array) -> Array:
    grad = rescale(grad)
    return grad / nonzero(euclidean_length(grad))


def _sample(key: Array, image: Array, eps: Array) -> Array:
    # All but two coordinates of a uniform point on the sphere are uniform in the ball.
    gaussian = jax.random.normal(key, (image.size + 2,))
    return eps * (gaussian / euclidean_length(gaussian))[:-2].reshape(image.shape)


L2 = Norm(
    name="l2",
    dual="l2",
    flatten=jnp.ravel,
    length=euclidean_length,
    dual_length=euclidean_length,
    shrink=_water_fill,
    climb=_water_fill,
    gains=_proportional_gains,
    steepest=_unit,
    sample=_sample,
    adds_up=True,
)
