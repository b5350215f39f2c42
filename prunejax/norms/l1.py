"""L1: the sum of all changes."""

import jax
import jax.numpy as jnp

from prunejax.norms.geometry import Array, at_budget, max_length, total_length
from prunejax.norms.norm import Norm


def _soft_threshold(magnitude: Array, reach: Array, eps: Array) -> Array:
    return at_budget(lambda m: jnp.clip(magnitude - m, 0.0, reach), jnp.sum, eps)


def _fill_by_slope(slope: Array, reach: Array, eps: Array) -> Array:
    return at_budget(lambda m: jnp.where(slope > m, reach, 0.0), jnp.sum, eps)


def _slide(grad: Array, free: Array) -> Array:
    most = 1 + (grad.size - 1) // 100  # entries from the 0.99 quantile up, were all of them free
    wanted = 1 + (jnp.sum(free) - 1) // 100
    slope = jnp.where(free, jnp.abs(grad), 0.0)
    quantile = jax.lax.top_k(slope, most)[0][wanted - 1]
    chosen = (slope >= quantile) & (slope > 0)
    return jnp.where(chosen, jnp.sign(grad), 0.0) / jnp.maximum(jnp.sum(chosen), 1)


def _sample(key: Array, image: Array, eps: Array) -> Array:
    # All but one coordinate of a uniform point on the cross-polytope are uniform in the ball.
    laplace = jax.random.laplace(key, (image.size + 1,))
    return eps * (laplace / total_length(laplace))[:-1].reshape(image.shape)


L1 = Norm(
    name="l1",
    dual="linf",
    flatten=jnp.ravel,
    length=total_length,
    dual_length=max_length,
    shrink=_soft_threshold,
    climb=_fill_by_slope,
    gains=_fill_by_slope,
    steepest=_slide,
    sample=_sample,
    adds_up=True,
)
