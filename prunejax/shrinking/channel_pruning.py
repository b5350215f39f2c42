"""Choosing channels as they can be removed: all that belongs to one together."""

import fnmatch
import glob
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from prunejax import checks, masks, trees
from prunejax.pruning import allocation, granularity, selection
from prunejax.pruning.evidence import Evidence
from prunejax.pruning.pruner import Pruner, require_numbers
from prunejax.shrinking import gone, grouping, structure, widths
from prunejax.shrinking.coupling import OUTPUTS
from prunejax.shrinking.grouping import Group
from prunejax.shrinking.structure import Structure

# The units of a weight with one position on an axis: in a dense layer columns, or rows.
UNITS = {-1: granularity.FILTER, -2: granularity.CHANNEL}
# Granularities that a pruner of channels may have: those, and the default of all pruners.
GRANULARITIES = ("weight", "column", "filter", "row", "channel")


def channel_mask(
    traced: Structure,
    variables: Any,
    sparsity: float,
    pruner: Pruner | None = None,
    *,
    current: Any | None = None,
    evidence: Evidence | None = None,
    multiple: int = 1,
) -> Any:
    """A mask of whole channels, coupled ones together, ready for `shrink`.

    A channel's score is the mean of its makers' scores: of a filter, or of the filters of all
    layers whose outputs are added. By the aggregate "first" it is that of the first maker. What an
    earlier mask has removed of the makers does not count, and a channel that it leaves nothing of
    goes before all others.

    Args:
      traced: the network's structure.
      variables: of the network.
      sparsity: share of the channels to remove, in [0, 1).
      pruner: its criterion and aggregate score the filters of convolutions and the columns of dense
        layers; a group of channels is left alone where any of its makers is excluded. To its
        allocation each group is a layer, of as many units as it has channels and of the shape of
        the first of its makers; a table's first pattern that matches any of them counts. Its guard
        keeps a channel of each group.
      current: an earlier mask of the parameters, any; all is left where None.
      evidence: for criteria that need more than the weights.
      multiple: the widths of the layers are rounded up to a multiple of this, or left whole: the
        best of those that would go stay. (`shrink` keeps zeros, which training does not revive.)

    Returns:
      A mask of the parameters that is carried through everything a channel touches; what else
      `current` has removed is not in it.

    Raises:
      ValueError: a sparsity outside [0, 1) or above that of the allocation's table, a multiple
        below 1, variables without "params" or of another network than the traced one, a mask
        `current` that does not fit, a pattern without a match, one of `include` but "*" that
        matches only weights whose channels must stay (`kept_whole` lists them), a granularity of
        other units, evidence that the criterion lacks, no channel that could be removed, or a
        weight whose outputs are on neither of its last two axes.
    """
    pruner = Pruner() if pruner is None else pruner
    checks.number("sparsity", sparsity, within="[0, 1)")
    checks.integer("multiple", multiple, least=1)
    structure.require_params(variables)
    params = variables["params"]
    ranking = ranked(traced, params, pruner, evidence, current=current)
    if sparsity == 0 and not ranking.groups:
        return masks.dense(params)
    require_any(traced, params, pruner, ranking)
    lowest = removed(ranking.groups, params, sparsity, pruner)
    return mask_without(traced, variables, ranking, lowest, guard=pruner.guard, multiple=multiple)


class Ranking(NamedTuple):
    """Channels that may go, and in which order.

    Attributes:
      groups: those of which a pruner scores all makers.
      score: `[channels]`; the lowest of those that are compared goes first.
    """

    groups: list[Group]
    score: np.ndarray


def ranked(
    traced: Structure,
    params: Any,
    pruner: Pruner,
    evidence: Evidence | None = None,
    *,
    current: Any | None = None,
) -> Ranking:
    """The channels by their scores, as `channel_mask` compares them; args and errors as there."""
    score = channel_scores(traced, params, pruner, evidence, current=current)
    allowed = trees.prunable(params, pruner.include, pruner.exclude)
    groups = [group for group in grouping.groups(traced) if set(group.makers) <= set(allowed)]
    _require_effect(traced, groups, pruner, allowed)
    comparable = allocation.create(pruner.allocation).comparable
    for own, _ in groups:
        score[own] = comparable(jnp.asarray(score[own], jnp.float32))
    return Ranking(groups, score)


def require_any(traced: Structure, params: Any, pruner: Pruner, ranking: Ranking) -> None:
    """Raises a ValueError that says why, where no channel may go."""
    if not ranking.groups:
        allowed = trees.prunable(params, pruner.include, pruner.exclude)
        raise ValueError(f"no channels can be removed: {_why_none(traced, pruner, allowed)}.")


def mask_without(
    traced: Structure,
    variables: Any,
    ranking: Ranking,
    lowest: Sequence[tuple[np.ndarray, int]],
    *,
    guard: bool = True,
    multiple: int = 1,
) -> Any:
    """The mask of the parameters without so many of the lowest of these channels.

    Args:
      traced, variables, multiple: as in `channel_mask`.
      ranking: of all channels.
      lowest: channels that are ranked together, and how many of them go.
      guard: the best channel of each group stays.
    """
    score, kept = ranking.score, np.ones(traced.number, bool)
    best_first = [_best_first(own, score) for own, _ in ranking.groups]
    best = [own[0] for own in best_first] if guard else []
    for together, number in lowest:
        order = np.where(np.isin(together, best), np.inf, score[together])
        keep = selection.keep_all_but_lowest(jnp.asarray(order, jnp.float32), number)
        kept[together[~np.asarray(keep)]] = False
    kept = widths.rounded_up(traced, best_first, kept, multiple)
    return structure.carry(traced, kept, variables)["params"]


def removed(
    groups: Sequence[Group], params: Any, sparsity: float, pruner: Pruner
) -> list[tuple[np.ndarray, int]]:
    """The channels that are ranked together, and how many of them go by a pruner's allocation."""
    shapes = {path: jnp.shape(leaf) for path, leaf in trees.flatten(params).items()}
    named: dict[str, Group] = {}
    for group in groups:
        name = group.makers[0]
        if name in named:  # one weight, whose two axes make channels of different groups
            name = f"{name} ({len(named)})"
        named[name] = group
    layers = {
        name: allocation.Layer(len(group.channels), shapes[group.makers[0]])
        for name, group in named.items()
    }
    chosen = allocation.create(_by_name(pruner.allocation, named))
    counts = chosen.removal(layers, sparsity, guard=pruner.guard)
    return [
        (np.concatenate([named[name].channels for name in own]), number) for own, number in counts
    ]


def _by_name(wanted: str | allocation.Table, named: Mapping[str, Group]) -> str | allocation.Table:
    """The allocation; of a table the density of each group, and the patterns that match none."""
    if isinstance(wanted, str):
        return wanted
    every = [path for group in named.values() for path in group.makers]
    unmatched = [entry for entry in wanted if not fnmatch.filter(every, entry[0])]
    found = (
        (glob.escape(name), next((d for p, d in wanted if fnmatch.filter(group.makers, p)), 1.0))
        for name, group in named.items()
    )
    return (*unmatched, *found)


def channel_scores(
    traced: Structure,
    params: Any,
    pruner: Pruner,
    evidence: Evidence | None = None,
    *,
    current: Any | None = None,
) -> np.ndarray:
    """`[channels]`: the score of each channel from its makers'; 0 where none is scored.

    And -inf where the mask `current` leaves nothing of it. Args and errors as in `channel_mask`.
    """
    structure.require_traced(traced, params)
    current = masks.dense(params) if current is None else current
    kept = gone.left_by(traced, params, current)
    allowed = trees.prunable(params, pruner.include, pruner.exclude)
    axes = [(path, axis) for path in allowed for axis in _made_axes(traced, path)]
    evidence = (evidence or Evidence()).keyed()
    evidence = evidence._replace(allowed=allowed, mask=current)
    scores = unit_scores(masks.apply(params, current), pruner, axes, evidence)
    total, number = np.zeros(traced.number), np.zeros(traced.number)
    only_first = takes_first(pruner)
    for (path, axis), own in scores.items():
        channels, own = traced.along(f"params/{path}")[axis], own.ravel()
        counts = own > -np.inf
        if only_first:
            counts &= number[channels] == 0
        np.add.at(total, channels[counts], own[counts])
        np.add.at(number, channels[counts], 1)
    return np.where(kept, total / np.maximum(number, 1), -np.inf)


def _made_axes(traced: Structure, path: str) -> list[int]:
    """The axes of a weight, counted from its last, along which it makes channels that can go."""
    labels = traced.channels.labels[traced.variables[f"params/{path}"]]
    removable, found = traced.removable(), []
    for axis, own in enumerate(labels, start=-len(labels)):
        if not (traced.channels.made[own] & removable[traced.channels.channel[own]]).any():
            continue
        if axis not in UNITS:
            raise ValueError(
                f"the channels of {path!r} are on its axis {axis + len(labels)} of {len(labels)}; "
                "only those on one of the last two axes can be scored. Exclude it."
            )
        found.append(axis)
    return found


def unit_scores(
    params: Any, pruner: Pruner, axes: Sequence[tuple[str, int]], evidence: Evidence
) -> dict[tuple[str, int], np.ndarray]:
    """What each position on an axis of a weight is worth.

    The criterion is asked once, for all weights together.

    Args and errors as in `channel_mask`, and
      axes: the path of each weight and one of its axes, -1 or -2.
      evidence: its mask, where there is one, is that of the parameters.

    Returns:
      Scores by path and axis, -inf where the mask leaves nothing; their shapes broadcast against
      the weights.
    """
    if pruner.granularity not in GRANULARITIES:
        raise ValueError(
            f"granularity is {pruner.granularity!r}; here whole channels are scored: leave it out."
        )
    pruner.check(evidence)
    if not axes:
        return {}
    evidence = evidence._replace(paths=tuple(dict.fromkeys(path for path, _ in axes)))
    of_weights, leaves = pruner.weight_scores(params, evidence), trees.flatten(params)
    left = trees.flatten(masks.dense(params) if evidence.mask is None else evidence.mask)
    found = {
        (path, axis): np.asarray(
            UNITS[axis].scores(
                of_weights[path],
                left[path],
                jnp.shape(leaves[path]),
                pruner.reduction,
                pruner.scorer.finish,
            )
        )
        for path, axis in axes
    }
    require_numbers(found.values(), pruner.scorer)
    return found


def takes_first(pruner: Pruner) -> bool:
    """Whether what is made of several has the score of the first of them, as where it is drawn."""
    return pruner.reduction is granularity.AGGREGATES["first"]


def _best_first(group: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Of equal ones the last to go comes first."""
    return group[np.argsort(score[group], kind="stable")[::-1]]


def _require_effect(
    traced: Structure, groups: Sequence[Group], pruner: Pruner, allowed: Sequence[str]
) -> None:
    """Raises a ValueError for a pattern of weights of which none can lose channels."""
    going = {path for group in groups for path in group.makers}
    for pattern in pruner.include:
        matched = fnmatch.filter(allowed, pattern)
        if pattern != "*" and matched and going.isdisjoint(matched):
            raise ValueError(
                f"pattern {pattern!r} in include can remove no channels, such as those of "
                f"{matched[0]!r}: {_why_whole(traced, matched[0], pruner, allowed)}."
            )


def _why_none(traced: Structure, pruner: Pruner, allowed: Sequence[str]) -> str:
    """One reason for which no group of channels may lose any."""
    for group in grouping.groups(traced):
        return _why_whole(traced, group.makers[0], pruner, allowed)
    whole = grouping.kept_whole(traced)
    if not whole:
        return "the network has no layer that makes any"
    # Of the last layer it is known.
    path = next((path for path in whole if whole[path] != OUTPUTS), next(iter(whole)))
    return _why_whole(traced, path, pruner, allowed)


def _why_whole(traced: Structure, path: str, pruner: Pruner, allowed: Sequence[str]) -> str:
    """Why a weight keeps all its channels."""
    whole = grouping.kept_whole(traced)
    if path in whole:
        return f"those that {path!r} makes must stay, {whole[path]}"
    for _, together in grouping.groups(traced):
        left_alone = [other for other in together if other not in allowed]
        if path in together and left_alone:
            return (
                f"pruner leaves {left_alone[0]!r} alone "
                f"(include is {pruner.include}, exclude {pruner.exclude})"
            )
    return f"{path!r} makes none of its own"
