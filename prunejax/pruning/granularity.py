"""What is removed together: scores of weights become scores of units.

A unit's score array broadcasts against its weight, so a mask of units is a mask of weights.
"""

import dataclasses
from collections.abc import Callable

import jax


@dataclasses.dataclass(frozen=True)
class Granularity:
    """A way to cut a weight into units.

    Attributes:
      name: its name in configs.
      ranks: the ranks of the weights it applies to; others are left untouched.
      reduce: scores of the weights -> scores of the units, of a shape that broadcasts back.
    """

    name: str
    ranks: tuple[int, ...]
    reduce: Callable[[jax.Array], jax.Array]


def _mean_per_filter(scores: jax.Array) -> jax.Array:
    return scores.mean(axis=tuple(range(scores.ndim - 1)), keepdims=True)


WEIGHT = Granularity("weight", ranks=tuple(range(2, 9)), reduce=lambda scores: scores)
# The mean, not the sum: it ranks filters alike within a layer, and comparably across layers
# (Merkle et al. 2021, global structured pruning).
FILTER = Granularity("filter", ranks=(3, 4, 5), reduce=_mean_per_filter)

GRANULARITIES: dict[str, Granularity] = {g.name: g for g in (WEIGHT, FILTER)}
