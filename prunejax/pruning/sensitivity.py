"""Densities from how much each layer suffers when it alone is pruned.

table = sensitivity.measure(params, pruner, (0.1, 0.3, 0.5), accuracy)
units = {path: layer.units for path, layer in pruner.layers(params).items()}
pruner = dataclasses.replace(pruner, allocation=sensitivity.densities(table, units, 0.2))
mask = pruning.prune(params, 0.8, pruner)
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prunejax import masks, trees
from prunejax.pruning.evidence import Evidence
from prunejax.pruning.pruner import Pruner, prune

Params = Any
Table = dict[str, dict[float, float]]
Progress = Callable[[int, int], None]


def measure(
    params: Params,
    pruner: Pruner,
    densities: Sequence[float],
    accuracy: Callable[[Params], float],
    *,
    evidence: Evidence | None = None,
    progress: Progress = lambda measured, wanted: None,
) -> Table:
    """How accurate the network is when one layer alone is pruned: `A_l(d)`, layer by density.

        A_l(d) = accuracy(w with layer l at density d, all other layers dense),

    the sensitivity analysis of Li et al. (2017, section 3). `accuracy` may be any score, so that
    robust accuracy (`evaluation.accuracy_under`) shows which layers robustness depends on. All
    layers are scored once, on the dense network; density 1 is measured once for all of them.

    Args:
      params: pytree of parameters.
      pruner: its criterion, granularity, paths and guard choose what each layer loses; its
        allocation is not used.
      densities: shares of a layer's units to keep, in (0, 1]; 1 is always measured.
      accuracy: masked parameters -> a number, higher is better; called once for each layer and
        density below 1, and once for the dense network.
      evidence: for criteria that need more than the weights.
      progress: called with (accuracies measured, accuracies to measure).

    Returns:
      path -> density -> accuracy, which `densities` takes; densities increase.

    Raises:
      ValueError: no density or one outside (0, 1], one that the granularity cannot have, a pattern
        that matches no weight, or missing evidence.
    """
    wanted = in_order(densities)
    alone = _each_alone(params, pruner, evidence)
    for own in alone.values():
        for density in wanted:  # refuses what cannot be, before anything is measured
            own.removal(params, 1 - density)

    def at(path: str | None, density: float) -> float:
        if path is None:
            return accuracy(params)
        return accuracy(masks.apply(params, prune(params, 1 - density, alone[path])))

    return tabulated(alone, wanted, at, progress)


def tabulated(
    paths: Iterable[str],
    densities: Sequence[float],
    at: Callable[[str | None, float], float],
    progress: Progress,
) -> Table:
    """`at(path, density)` of each path and density below 1; density 1 is `at(None, 1)` for all."""
    paths, pruned = list(paths), [density for density in densities if density < 1]
    calls, wanted = itertools.count(1), 1 + len(paths) * len(pruned)

    def measured(path: str | None, density: float) -> float:
        accuracy = float(at(path, density))
        progress(next(calls), wanted)
        return accuracy

    progress(0, wanted)
    whole = measured(None, 1.0)
    return {path: {d: measured(path, d) for d in pruned} | {1.0: whole} for path in paths}


def in_order(densities: Sequence[float]) -> list[float]:
    """Each once, the lowest first; raises a ValueError for none, or one outside (0, 1]."""
    wanted = sorted({float(density) for density in densities})
    if not wanted or not all(0 < density <= 1 for density in wanted):
        raise ValueError(f"densities is {tuple(densities)}; some in (0, 1] are needed.")
    return wanted


def _each_alone(params: Params, pruner: Pruner, evidence: Evidence | None) -> dict[str, Pruner]:
    """By path a pruner of that layer alone, with the scores of the dense network."""
    paths = pruner.paths(params)
    evidence = (evidence or Evidence()).keyed()._replace(paths=paths)
    found = trees.unflatten(params, pruner.weight_scores(params, evidence))
    scored = dataclasses.replace(pruner.scorer, score=lambda params, evidence: found, needs=())
    return {
        path: dataclasses.replace(
            pruner, criterion=scored, allocation="uniform", include=(path,), exclude=()
        )
        for path in paths
    }


def densities(
    table: Mapping[str, Mapping[float, float]], sizes: Mapping[str, int], density: float
) -> dict[str, float]:
    """The densities at which all layers would, each pruned alone, reach the same accuracy.

    Layer l has the lowest density d_l whose accuracy A_l(d_l) is at least a; the level a is the one
    at which sum d_l n_l = d n. A_l is linear between the measured densities, and a density counts
    for as good as the best below it, so that noise does not make a curve fall. Measured with robust
    accuracy, the result protects the layers that robustness depends on. (Li et al. 2017
    choose such levels by eye.)

    Give it to a pruner as its `allocation`.

    Args:
      table: path -> density -> accuracy with only that layer pruned; each layer needs density 1.
      sizes: units n_l of the layers.
      density: share d of all units to keep, in (0, 1].

    Returns:
      path -> density in (0, 1], none below the lowest that was measured for its layer.

    Raises:
      ValueError: layers of table and sizes that differ, densities outside (0, 1] or without 1, or a
        density below that of the lowest measured ones.
    """
    if table.keys() != sizes.keys():
        raise ValueError(f"table and sizes differ in the layers {sorted(table.keys() ^ sizes)}.")
    curves = {path: _curve(path, measured) for path, measured in table.items()}
    total = density * sum(sizes.values())

    def kept(values):
        return sum(values[path] * n for path, n in sizes.items())

    def at(level):
        return {path: _lowest(curve, level) for path, curve in curves.items()}

    lowest = {path: curve[0][0] for path, curve in curves.items()}
    least = kept(lowest)
    if not least * (1 - 1e-9) <= total <= sum(sizes.values()):
        raise ValueError(
            f"density is {density}; the densities in table reach from "
            f"{least / sum(sizes.values()):.4g} to 1."
        )
    accuracies = [a for curve in curves.values() for _, a in curve]
    low, high = min(accuracies), max(accuracies)
    below, above = lowest, {path: 1.0 for path in curves}
    while low < (middle := (low + high) / 2) < high:
        values = at(middle)
        if kept(values) <= total:
            low, below = middle, values
        else:
            high, above = middle, values
    # Where a curve is flat its density jumps: the total lies between the two sides of the jump.
    jump = kept(above) - kept(below)
    share = (total - kept(below)) / jump if jump > 0 else 0.0
    return {path: below[path] + share * (above[path] - below[path]) for path in curves}


def _curve(path: str, measured: Mapping[float, float]) -> Sequence[tuple[float, float]]:
    points = sorted((float(d), float(a)) for d, a in measured.items())
    if not points or points[0][0] <= 0 or points[-1][0] != 1:
        raise ValueError(
            f"table has the densities {[d for d, _ in points]} for {path!r}; they must lie in "
            "(0, 1], and 1 be among them."
        )
    best = float("-inf")
    return [(d, best := max(best, a)) for d, a in points]


def _lowest(curve: Sequence[tuple[float, float]], level: float) -> float:
    """The lowest density at which a non-decreasing, piecewise linear curve reaches the level."""
    if curve[0][1] >= level:
        return curve[0][0]
    for (d0, a0), (d1, a1) in itertools.pairwise(curve):
        if a1 >= level:
            return d0 + (d1 - d0) * (level - a0) / (a1 - a0)
    return 1.0
