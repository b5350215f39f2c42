"""Densities from how much the network suffers when one group of channels alone is pruned.

table = channel_sensitivity.measure(traced, variables, pruner, (0.3, 0.6), accuracy)
allocation = channel_sensitivity.allocation(traced, table, density=0.8)
mask = channel_mask(traced, variables, 0.2, dataclasses.replace(pruner, allocation=allocation))
"""

import dataclasses
import glob
from collections.abc import Callable, Sequence
from typing import Any

from prunejax import masks
from prunejax.pruning import sensitivity
from prunejax.pruning.evidence import Evidence
from prunejax.pruning.pruner import Pruner
from prunejax.shrinking import channel_pruning, grouping
from prunejax.shrinking.grouping import Group
from prunejax.shrinking.structure import Structure


def measure(
    traced: Structure,
    variables: Any,
    pruner: Pruner,
    densities: Sequence[float],
    accuracy: Callable[[Any], float],
    *,
    current: Any | None = None,
    evidence: Evidence | None = None,
    progress: sensitivity.Progress = lambda measured, wanted: None,
) -> sensitivity.Table:
    """How accurate the network is when one group of channels alone is pruned.

    `pruning.sensitivity.measure` for channels that go together: A_g(d) is the accuracy without the
    lowest share 1 - d of the channels of group g. All are scored once, on the network as it is.

    Args:
      traced, variables, current, evidence: as in `channel_mask`.
      pruner: its criterion, aggregate, paths and guard choose what each group loses; its allocation
        is not used.
      densities: shares of a group's channels to keep, in (0, 1]; 1 is always measured.
      accuracy: masked parameters -> a number, higher is better; called once for each group and
        density below 1, and once for the whole network.
      progress: called with (accuracies measured, accuracies to measure).

    Returns:
      The path of a group's first maker -> density -> accuracy; densities increase.

    Raises:
      ValueError: no density or one outside (0, 1], and what `channel_mask` raises.
    """
    wanted = sensitivity.in_order(densities)
    pruner = dataclasses.replace(pruner, allocation="uniform")
    params = variables["params"]
    ranking = channel_pruning.ranked(traced, params, pruner, evidence, current=current)
    channel_pruning.require_any(traced, params, pruner, ranking)
    groups = _by_first_maker(ranking.groups)

    def at(path: str | None, density: float) -> float:
        if path is None:
            return accuracy(params)
        lowest = channel_pruning.removed(groups[path], params, 1 - density, pruner)
        mask = channel_pruning.mask_without(traced, variables, ranking, lowest, guard=pruner.guard)
        return accuracy(masks.apply(params, mask))

    return sensitivity.tabulated(groups, wanted, at, progress)


def allocation(
    traced: Structure, table: sensitivity.Table, density: float
) -> tuple[tuple[str, float], ...]:
    """A pruner's allocation for `channel_mask`, by `pruning.sensitivity.densities`.

    Args:
      traced: the network's structure, as it was measured.
      table: what `measure` returns.
      density: share of the channels to keep, in (0, 1].

    Returns:
      Pairs of a pattern and the density of the group whose first maker it matches.

    Raises:
      ValueError: a table of other groups, or a density below that of the lowest measured ones.
    """
    groups = _by_first_maker(grouping.groups(traced))
    own = {path: groups[path] for path in table if path in groups}
    sizes = {path: sum(len(g.channels) for g in of_it) for path, of_it in own.items()}
    found = sensitivity.densities(table, sizes, density)
    # A pattern counts for all that its layer makes: groups of more layers have theirs first.
    most_makers = sorted(own, key=lambda path: -max(len(group.makers) for group in own[path]))
    return tuple((glob.escape(path), found[path]) for path in most_makers)


def _by_first_maker(groups: Sequence[Group]) -> dict[str, list[Group]]:
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.makers[0], []).append(group)
    return found
