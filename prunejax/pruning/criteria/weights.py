"""Criteria that look at one weight at a time."""

import zlib

import jax
import jax.numpy as jnp

from prunejax import trees
from prunejax.pruning.evidence import Criterion, Evidence, Params, widened


def magnitude(params: Params, evidence: Evidence) -> Params:
    """|w|, the lowest-weight-magnitude criterion (Han et al. 2015, section 3)."""
    del evidence
    return jax.tree.map(jnp.abs, params)


def squared(params: Params, evidence: Evidence) -> Params:
    """The square w^2, which ranks weights as |w| does, and units as their L2 norm does.

    Of filters the criterion of soft filter pruning (He et al. 2018).
    """
    del evidence
    return jax.tree.map(lambda w: jnp.square(widened(w)), params)


def random(params: Params, evidence: Evidence) -> Params:
    """Drawn uniformly from [0, 1), by the key and the leaf's path; a unit has its first weight's.

    The baseline of Merkle et al. (2021) among others.
    """

    def score(path, leaf):
        leaf_key = jax.random.fold_in(evidence.key, zlib.crc32(path.encode()))
        return jax.random.uniform(leaf_key, jnp.shape(leaf))

    return trees.map_with_path(score, params)


MAGNITUDE = Criterion("magnitude", magnitude)
SQUARED = Criterion("squared", squared)
RANDOM = Criterion("random", random, needs=("key",), aggregate="first")
