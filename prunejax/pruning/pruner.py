"""Criterion x granularity x allocation: from parameters and a sparsity to a mask."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from prunejax import names, trees
from prunejax.pruning import allocation, criteria, granularity, selection

Params = Any
Mask = Any
Removal = Mapping[tuple[str, ...], int | jax.Array]


@dataclasses.dataclass(frozen=True)
class Pruner:
    """What to remove: four independent choices, by name.

    Attributes:
      criterion: which weights are worth keeping, a key of `CRITERIA`.
      granularity: what is removed together, a key of `GRANULARITIES`.
      allocation: how many units each layer loses, a key of `ALLOCATIONS`.
      include: shell patterns of the paths that may be pruned.
      exclude: shell patterns of the paths that may not.
    """

    criterion: str = "magnitude"
    granularity: str = "weight"
    allocation: str = "uniform"
    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()

    def __post_init__(self):
        names.lookup("criterion", self.criterion, criteria.CRITERIA)
        names.lookup("granularity", self.granularity, granularity.GRANULARITIES)
        names.lookup("allocation", self.allocation, allocation.ALLOCATIONS)
        object.__setattr__(self, "include", tuple(self.include))
        object.__setattr__(self, "exclude", tuple(self.exclude))

    def paths(self, params: Params) -> tuple[str, ...]:
        """The leaves this pruner removes units of."""
        leaves = trees.flatten(params)
        ranks = granularity.GRANULARITIES[self.granularity].ranks
        candidates = trees.prunable(params, self.include, self.exclude)
        return tuple(path for path in candidates if jnp.ndim(leaves[path]) in ranks)

    def initial(self, params: Params) -> Mask:
        """The mask that keeps every unit, in the shapes of this pruner's masks."""
        paths = self.paths(params)
        reduce = granularity.GRANULARITIES[self.granularity].reduce

        def leaf(path, param):
            shape = jax.eval_shape(reduce, param).shape if path in paths else ()
            return jnp.ones(shape, bool)

        return trees.map_with_path(leaf, params)

    def removal(self, params: Params, sparsity: float) -> dict[tuple[str, ...], int]:
        """How many units each group of layers loses at `sparsity`, exactly."""
        units = trees.flatten(self.initial(params))
        sizes = {path: units[path].size for path in self.paths(params)}
        return dict(allocation.ALLOCATIONS[self.allocation](sizes, sparsity))

    def mask(self, params: Params, current: Mask, removal: Removal, key: jax.Array) -> Mask:
        """The mask that removes `removal` units of each group, those gone in `current` first.

        A pure function whose counts may be traced, so that it can live inside a training step.
        """
        reduce = granularity.GRANULARITIES[self.granularity].reduce
        scores = trees.flatten(criteria.CRITERIA[self.criterion](params, key))
        kept = trees.flatten(current)
        for group, count in removal.items():
            unit_scores = [jnp.where(kept[p], reduce(scores[p]), -jnp.inf) for p in group]
            keep = selection.keep_all_but_lowest(
                jnp.concatenate([s.ravel() for s in unit_scores]), count
            )
            offset = 0
            for path, units in zip(group, unit_scores, strict=True):
                # Also where `current` lost more than `removal` asks for, nothing comes back.
                kept[path] &= keep[offset : offset + units.size].reshape(units.shape)
                offset += units.size
        return trees.unflatten(current, kept)


def prune(
    params: Params,
    sparsity: float,
    pruner: Pruner | None = None,
    *,
    key: jax.Array | None = None,
    current: Mask | None = None,
) -> Mask:
    """The mask that prunes `params` to `sparsity`.

    Args:
      params: pytree of parameters.
      sparsity: share of the units to remove, in [0, 1); exactly `round(sparsity * n)` go, ties by
        index.
      pruner: what to remove; by default the smallest weights of each layer.
      key: for criteria that draw at random.
      current: an earlier mask; what it removed stays removed.

    Returns:
      The mask; apply it with `masks.apply(params, mask)`.

    Raises:
      ValueError: a sparsity outside [0, 1), or a pattern that matches no weight.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is {sparsity}; it must lie in [0, 1).")
    pruner = Pruner() if pruner is None else pruner
    key = jax.random.key(0) if key is None else key
    current = pruner.initial(params) if current is None else current
    return pruner.mask(params, current, pruner.removal(params, sparsity), key)
