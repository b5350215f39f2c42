"""Criterion x granularity x allocation: from parameters and a sparsity to a mask."""

import dataclasses
import fnmatch
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from prunejax import checks, masks, names, trees
from prunejax.pruning import allocation, granularity, schedules, selection
from prunejax.pruning.allocation import Layer, Table
from prunejax.pruning.criteria import CRITERIA
from prunejax.pruning.evidence import Criterion, Evidence
from prunejax.pruning.granularity import Reduction

Params = Any
Mask = Any
Removal = Mapping[tuple[str, ...], int | jax.Array]


@dataclasses.dataclass(frozen=True)
class Pruner:
    """What to remove: independent choices, by name.

    Attributes:
      criterion: which weights are worth keeping, a key of `CRITERIA` or a `Criterion`.
      granularity: what is removed together, a key of `GRANULARITIES`, "N:M" as in "2:4", or blocks
        as in "block4x4".
      allocation: how many units each layer loses, a key of `ALLOCATIONS`, or a table of densities
        by path pattern, see `allocation.from_table`; the first pattern that matches counts.
      include: shell patterns of the paths that may be pruned, or one. Weights of a rank that has no
        such units, such as dense layers for "filter", are left untouched; a pattern or a path that
        is matched by such weights alone is an error. So is a weight that N:M or blocks do not
        divide, and one that the criterion cannot score; and units of inputs (channels, rows, N:M)
        by a criterion that scores outputs.
      exclude: shell patterns of the paths that may not, or one.
      aggregate: how scores of weights become a unit's, a key of `AGGREGATES`; None is the
        criterion's own, mostly "mean".
      guard: keep at least one unit of each layer; the total stays exact as far as units are left.
        False lets layers collapse, as in much published work.
    """

    criterion: str | Criterion = "magnitude"
    granularity: str = "weight"
    allocation: str | Mapping[str, float] | Table = "uniform"
    include: str | Sequence[str] = ("*",)
    exclude: str | Sequence[str] = ()
    aggregate: str | None = None
    guard: bool = True

    def __post_init__(self):
        _criterion(self.criterion)
        units = granularity.create(self.granularity)
        if not isinstance(self.allocation, str):
            object.__setattr__(self, "allocation", allocation.checked_table(self.allocation))
        allocation.create(self.allocation)
        if self.aggregate is not None:
            names.require("aggregate", self.aggregate, granularity.AGGREGATES)
        if units.fixed_density and self.allocation not in ("uniform", "global"):
            raise ValueError(
                f"granularity {self.granularity!r} gives all layers one density; "
                f"allocation must be 'uniform' or 'global', not {self.allocation!r}."
            )
        object.__setattr__(self, "include", trees.patterns(self.include))
        object.__setattr__(self, "exclude", trees.patterns(self.exclude))

    @property
    def scorer(self) -> Criterion:
        """The criterion, also where it is given by name."""
        return _criterion(self.criterion)

    @property
    def reduction(self) -> Reduction:
        """How scores of weights become a unit's: the pruner's choice, or its criterion's."""
        return granularity.AGGREGATES[self.aggregate or self.scorer.aggregate]

    def paths(self, params: Params) -> tuple[str, ...]:
        """The leaves this pruner removes units of.

        Raises:
          ValueError: a pattern that matches no weight, or none that has such units; nothing that is
            left to prune; a weight whose shape such units do not divide.
        """
        shapes = {path: jnp.shape(leaf) for path, leaf in trees.flatten(params).items()}
        units = granularity.create(self.granularity)
        candidates = trees.prunable(params, self.include, self.exclude)
        if not candidates:
            raise ValueError(
                f"include is {self.include} and exclude {self.exclude}, which leaves none of the "
                f"weights {list(trees.weights(params))} to prune."
            )
        misfits = {path: units.misfit(shapes[path]) for path in candidates}
        for pattern in self.include:
            matched = [path for path in candidates if fnmatch.fnmatchcase(path, pattern)]
            if matched and all(misfits[path] for path in matched):
                path = matched[0]
                which = f" ({pattern!r} in include matches only such)" if pattern != path else ""
                raise ValueError(
                    f"granularity is {self.granularity!r}, but {path!r} {misfits[path]}{which}."
                )
        for path in candidates:
            if not misfits[path]:
                units.require(path, shapes[path])
        return tuple(path for path in candidates if not misfits[path])

    def initial(self, params: Params) -> Mask:
        """The mask that keeps every unit, in the shapes of this pruner's masks."""
        paths = self.paths(params)
        units = granularity.create(self.granularity)

        def leaf(path, param):
            if path not in paths:
                return jnp.array(True)
            shape = jnp.shape(param)
            return units.expand(jnp.ones(units.unit_shape(shape), bool), shape)

        return trees.map_with_path(leaf, params)

    def layers(self, params: Params) -> dict[str, Layer]:
        """Units and shape of each leaf that this pruner removes units of."""
        units, leaves = granularity.create(self.granularity), trees.flatten(params)
        shapes = {path: jnp.shape(leaves[path]) for path in self.paths(params)}
        return {
            path: Layer(math.prod(units.unit_shape(shape)), shape) for path, shape in shapes.items()
        }

    def removal(
        self, params: Params, sparsity: float, *, on_the_way: bool = False
    ) -> dict[tuple[str, ...], int]:
        """How many units each group of layers loses at `sparsity`, exactly.

        Args:
          params: pytree of parameters.
          sparsity: share of the units to remove, in [0, 1).
          on_the_way: more is to go later; N:M then takes any sparsity up to its own.

        Raises:
          ValueError: a sparsity outside [0, 1), or one that the granularity or the table of
            densities cannot have.
        """
        checks.number("sparsity", sparsity, within="[0, 1)")
        units = granularity.create(self.granularity)
        units.require_sparsity(sparsity, on_the_way=on_the_way)
        layers = self.layers(params)
        chosen = allocation.create(self.allocation)
        return dict(chosen.removal(layers, sparsity, guard=self.guard))

    def check(self, evidence: Evidence) -> None:
        """Raises a ValueError where the criterion needs evidence that is not there."""
        self.scorer.check(evidence)

    def weight_scores(self, params: Params, evidence: Evidence) -> dict[str, jax.Array]:
        """What the criterion makes of each leaf, by path; those of `evidence.paths` are scored.

        Raises:
          ValueError: it needs evidence that is not there, or its scores have not the structure of
            `params`.
        """
        self.check(evidence)
        scores = self.scorer.score(params, evidence)
        trees.require_like(f"the scores of criterion {self.scorer.name!r}", scores, params)
        return trees.flatten(scores)

    def scores(self, params: Params, current: Mask, evidence: Evidence) -> dict[str, jax.Array]:
        """Scores of the units by path, -inf for what `current` has removed.

        The criterion sees the parameters under the mask `current`.

        Raises:
          ValueError: the criterion needs evidence that is not there, `current` or the scores have
            not the structure of `params`, the criterion cannot tell such units apart, or, outside
            of `jax.jit`, nothing that it makes of the evidence is a number.
        """
        criterion, units = self.scorer, granularity.create(self.granularity)
        paths, kept, leaves = self.paths(params), trees.flatten(current), trees.flatten(params)
        evidence = evidence._replace(paths=paths, mask=current)
        scores = self.weight_scores(masks.apply(params, current), evidence)
        for path in paths:
            shape, by = leaves[path].shape, jnp.shape(scores[path])
            if not units.distinguishes((1,) * (len(shape) - len(by)) + by, shape):
                raise ValueError(
                    f"granularity is {self.granularity!r}, but criterion {criterion.name!r} gives "
                    f"all inputs of {path!r} the same score; remove outputs ('filter', 'column') "
                    "by it, or take another."
                )
        of_units = functools.partial(
            units.scores, reduction=self.reduction, finish=criterion.finish
        )
        found = {path: of_units(scores[path], kept[path], leaves[path].shape) for path in paths}
        require_numbers(found.values(), criterion)
        return found

    def mask(
        self, params: Params, current: Mask, removal: Removal, evidence: Evidence | None = None
    ) -> Mask:
        """The mask that removes `removal` units of each group, those gone in `current` first.

        A pure function whose counts may be traced, so that it can live inside a training step.
        """
        units, leaves = granularity.create(self.granularity), trees.flatten(params)
        scores = self.scores(params, current, (evidence or Evidence()).keyed())
        kept, comparable = trees.flatten(current), allocation.create(self.allocation).comparable
        for group, count in removal.items():
            ranked = {path: comparable(scores[path]).ravel() for path in group}
            if self.guard:
                ranked = {path: _guarded(s) for path, s in ranked.items()}
                count = jnp.minimum(count, sum(s.size - 1 for s in ranked.values()))
            keep = selection.keep_all_but_lowest(jnp.concatenate(list(ranked.values())), count)
            offset = 0
            for path, flat in ranked.items():
                of_layer = keep[offset : offset + flat.size].reshape(scores[path].shape)
                # Also where `current` lost more than `removal` asks for, nothing comes back.
                kept[path] &= units.expand(of_layer, leaves[path].shape)
                offset += flat.size
        return trees.unflatten(current, kept)


def prune(
    params: Params,
    sparsity: float,
    pruner: Pruner | None = None,
    *,
    key: jax.Array | None = None,
    current: Mask | None = None,
    evidence: Evidence | None = None,
    rounds: int = 1,
    on_the_way: bool = False,
) -> Mask:
    """The mask that prunes `params` to `sparsity`.

    Args:
      params: pytree of parameters.
      sparsity: share of the units to remove, in [0, 1); exactly `round(sparsity * n)` go, ties by
        index, unless the pruner's guard holds some back.
      pruner: what to remove; by default the smallest weights of each layer.
      key: for criteria that draw at random.
      current: an earlier mask; what it removed stays removed.
      evidence: data, objective and network, for criteria that need them.
      rounds: in how many, each of which scores anew what those before it have left, at sparsities
        of constant rate. SynFlow takes 100 (Tanaka et al. 2020).
      on_the_way: more is to go later; N:M then takes any sparsity up to its own.

    Returns:
      The mask; apply it with `masks.apply(params, mask)`.

    Raises:
      ValueError: a sparsity outside [0, 1) or that the pruner cannot have, a pattern that matches
        no weight, a granularity that a weight cannot have, missing evidence, a mask `current`
        that does not fit, fewer rounds than 1.
    """
    checks.integer("rounds", rounds, least=1)
    pruner = Pruner() if pruner is None else pruner
    evidence = (evidence or Evidence()).keyed(key)
    whole = pruner.initial(params)
    current = whole if current is None else current
    last = pruner.removal(params, sparsity, on_the_way=on_the_way)
    *sparsities, _ = schedules.constant_rate(sparsity, end=rounds - 1, frequency=1)
    earlier = [pruner.removal(params, s, on_the_way=True) for _, s in sparsities]
    if earlier:  # as a compiled loop, or a hundred rounds would be compiled one by one
        masks.validate(params, current)
        counts = jax.tree.map(lambda *each: jnp.array(each), *earlier)
        current, _ = jax.lax.scan(
            lambda mask, removal: (pruner.mask(params, mask, removal, evidence), None),
            masks.intersect(current, whole),
            counts,
        )
    return pruner.mask(params, current, last, evidence)


def scores(
    params: Params,
    criterion: str | Criterion = "magnitude",
    *,
    key: jax.Array | None = None,
    evidence: Evidence | None = None,
) -> Params:
    """What each weight is worth by a criterion; higher is kept.

    Args:
      params: pytree of parameters.
      criterion: a key of `CRITERIA` or a `Criterion`.
      key: for criteria that draw at random.
      evidence: data, objective and network, for criteria that need them.

    Returns:
      A tree of params' structure whose leaves broadcast against the weights. Leaves that are never
      pruned have no meaning.

    Raises:
      ValueError: an unknown criterion, or missing evidence.
    """
    return _criterion(criterion)(params, (evidence or Evidence()).keyed(key))


def _criterion(criterion: str | Criterion) -> Criterion:
    if isinstance(criterion, Criterion):
        return criterion
    return names.lookup("criterion", criterion, CRITERIA)


def require_numbers(scores: Iterable[jax.Array], criterion: Criterion) -> None:
    """Raises a ValueError for scores of NaN alone, by which units would go by their index.

    Not while they are traced, nor for criteria that need no evidence.
    """
    scores = tuple(scores)
    if not criterion.needs or any(isinstance(of_layer, jax.core.Tracer) for of_layer in scores):
        return
    numbers = (jnp.where(jnp.isnan(s), granularity.NOT_A_NUMBER, s) for s in scores)
    if max(float(jnp.max(s, initial=-jnp.inf)) for s in numbers) == granularity.NOT_A_NUMBER:
        raise ValueError(
            f"criterion {criterion.name!r} gives no unit a score that is a number; look at the "
            "weights, and at the loss and the examples in the evidence."
        )


def _guarded(scores: jax.Array) -> jax.Array:
    """The scores of a layer with +inf for its best unit, of equal ones the last to go; [n]."""
    best = scores.size - 1 - jnp.argmax(scores[::-1])
    # A layer that is gone stays gone.
    return scores.at[best].set(jnp.where(scores[best] > -jnp.inf, jnp.inf, -jnp.inf))
