"""What makes a weight worth keeping: a score for every weight, higher is kept."""

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from prunejax import trees

Params = Any
Criterion = Callable[[Params, jax.Array], Params]


def magnitude(params: Params, key: jax.Array) -> Params:
    """|w|, the lowest-weight-magnitude criterion (Han et al. 2015)."""
    del key
    return jax.tree.map(jnp.abs, params)


def random(params: Params, key: jax.Array) -> Params:
    """Uniform in [0, 1), a function of the key and the leaf's path."""

    def score(path, leaf):
        leaf_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
        return jax.random.uniform(leaf_key, jnp.shape(leaf))

    return trees.map_with_path(score, params)


CRITERIA: dict[str, Criterion] = {"magnitude": magnitude, "random": random}
