"""Choosing channels as they can be removed: all that belongs to one together."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import masks, names, trees
from prunejax.pruning import selection
from prunejax.pruning.evidence import Evidence
from prunejax.pruning.pruner import Pruner
from prunejax.shrinking import shrink, structure
from prunejax.shrinking.structure import Structure

ALLOCATIONS = ("uniform", "global")


def channel_mask(
    traced: Structure,
    variables: Any,
    sparsity: float,
    pruner: Pruner | None = None,
    *,
    evidence: Evidence | None = None,
) -> Any:
    """A mask of whole channels, coupled ones together, ready for `shrink`.

    A channel's score is the mean of its makers' scores: of a filter, or of the filters of all
    layers whose outputs are added.

    Args:
      traced: the network's structure.
      variables: of the network.
      sparsity: share of the channels to remove, in [0, 1).
      pruner: its criterion and aggregate score the filters of convolutions and the columns of dense
        layers; a group of channels is left alone where any of its makers is excluded. Allocation
        "uniform" removes `round(sparsity n)` of the n channels of each group, "global" of all
        together by one threshold. Its guard keeps a channel of each group.
      evidence: for criteria that need more than the weights.

    Returns:
      A mask of the parameters that is carried through everything a channel touches.

    Raises:
      ValueError: a sparsity outside [0, 1), an allocation of another kind, a pattern without a
        match, or evidence that the criterion lacks.
    """
    pruner = Pruner() if pruner is None else pruner
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is {sparsity}; it must lie in [0, 1).")
    names.lookup("allocation of channels", pruner.allocation, dict.fromkeys(ALLOCATIONS))
    params = variables["params"]
    score = channel_scores(traced, params, pruner, evidence)
    allowed = trees.prunable(params, pruner.include, pruner.exclude)
    groups = [group for group in shrink.groups(traced) if _is_allowed(traced, group, allowed)]
    together = groups if pruner.allocation == "uniform" else [np.concatenate(groups)]
    kept = np.ones(traced.number, bool)
    best = [group[np.argmax(score[group])] for group in groups] if pruner.guard else []
    for group in together:
        ranked = np.where(np.isin(group, best), np.inf, score[group])
        number = min(round(sparsity * len(group)), int(np.isfinite(ranked).sum()))
        keep = selection.keep_all_but_lowest(jnp.asarray(ranked, jnp.float32), number)
        kept[group[~np.asarray(keep)]] = False
    return structure.carry(traced, kept, variables)["params"]


def channel_scores(
    traced: Structure, params: Any, pruner: Pruner, evidence: Evidence | None = None
) -> np.ndarray:
    """`[channels]`: the mean score of each channel's makers; 0 where none is scored."""
    total, makers = np.zeros(traced.number), np.zeros(traced.number)
    for path, scores in unit_scores(params, pruner, evidence).items():
        channels = traced.along(f"params/{path}")[-1]  # outputs come last, in filters and columns
        np.add.at(total, channels, scores.ravel())
        np.add.at(makers, channels, 1)
    return total / np.maximum(makers, 1)


def unit_scores(
    params: Any, pruner: Pruner, evidence: Evidence | None = None
) -> dict[str, np.ndarray]:
    """Of filters and columns, by path; their shapes broadcast against the weights.

    Args and errors as in `channel_mask`.
    """
    evidence = Evidence(key=jax.random.key(0)) if evidence is None else evidence
    ranks = {path: jnp.ndim(leaf) for path, leaf in trees.flatten(params).items()}
    allowed = trees.prunable(params, pruner.include, pruner.exclude)
    scores = {}
    for granularity, fits in (
        ("filter", lambda rank: rank > 2),
        ("column", lambda rank: rank == 2),
    ):
        paths = [path for path in allowed if fits(ranks[path])]
        if paths:
            own = dataclasses.replace(
                pruner, granularity=granularity, allocation="uniform", include=paths, exclude=()
            )
            scores |= own.scores(params, masks.dense(params), evidence)
    return {path: np.asarray(leaf) for path, leaf in scores.items()}


def _is_allowed(traced: Structure, group: np.ndarray, allowed: Sequence[str]) -> bool:
    return all(path in allowed for path in shrink.makers(traced, group))
