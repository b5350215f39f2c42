"""Prune and regrow: a sparse network whose connections move while it trains (RigL, SET).

tx = pruning.regrowing(optax.sgd(0.1, 0.9), pruning.Pruner(allocation="erk"), 0.9, end=9_000)
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from prunejax import checks, masks, names, trees
from prunejax.pruning import granularity, selection
from prunejax.pruning.evidence import Evidence
from prunejax.pruning.granularity import Granularity
from prunejax.pruning.optimizer import changing
from prunejax.pruning.pruner import Pruner, prune

Params = Any
Mask = Any

# Both are criteria: the missing units that score highest by it come back.
GROWTH = ("gradient", "random")


def regrowing(
    inner: optax.GradientTransformation,
    pruner: Pruner,
    sparsity: float,
    *,
    end: int,
    frequency: int = 100,
    drop: float = 0.3,
    final_drop: float = 0.0,
    grow: str = "gradient",
    mask: Mask | None = None,
    key: jax.Array | None = None,
    evidence: Evidence | None = None,
) -> optax.GradientTransformationExtraArgs:
    """`inner` on a sparse network that drops its worst units and grows as many others.

    After the update of every `frequency`-th step t, 0 < t < end, each layer that keeps k units
    drops `round(f(t) k)` of them, those with the lowest scores by the pruner's criterion, and grows
    as many of the missing ones, the dropped ones included: by |gradient| of the step (RigL, Evci et
    al. 2020, section 3) or at random (SET, Mocanu et al. 2018). The dropped share is

        f(t) = f_T + (f_0 - f_T) / 2 (1 + cos(pi t / end)),

    so SET's constant share is `final_drop = drop`, FlyingBird's .5 to .005. Each layer keeps its
    number of units for good, in N:M each group. Masks are not nested. What grows starts from zero,
    as do its moments, but for what was dropped at the same step: that stays as it is.

    Args:
      inner: any Optax optimiser.
      pruner: its allocation gives each layer's number of units, its criterion what is dropped.
      sparsity: share of the units that are missing, in [0, 1).
      end: step T from which on the mask stays.
      frequency: steps between two changes.
      drop: share f_0 of a layer's units to drop at first, in [0, 1].
      final_drop: share f_T at the end, likewise.
      grow: "gradient" or "random".
      mask: to start from; at random by default, as `pruner` allocates it.
      key: for what is drawn at random; that of `evidence` where None.
      evidence: data, objective and network, for criteria that need them; what grows is told by the
        gradient of the step all the same.

    Raises:
      ValueError: a value out of its range, an unknown `grow`, or missing evidence. On `init`: a
        mask that does not fit.
    """
    for name, value in (("drop", drop), ("final_drop", final_drop)):
        checks.number(name, value, within="[0, 1]")
    checks.number("sparsity", sparsity, within="[0, 1)")
    checks.integer("frequency", frequency, least=1)
    checks.integer("end", end, least=1)
    names.require("grow", grow, GROWTH)
    units = granularity.create(pruner.granularity)
    evidence = (evidence or Evidence()).keyed(key)
    pruner.check(evidence._replace(grads=()))
    grown = dataclasses.replace(pruner, criterion=grow)

    def start(params):
        if mask is None:
            return at_random(params, pruner, sparsity, evidence.key)
        masks.validate(params, mask)
        kept, leaves = trees.flatten(mask), trees.flatten(params)
        # In the pruner's shapes, for they must not change along the way.
        for path in pruner.paths(params):
            shape = leaves[path].shape
            kept[path] = units.expand(units.alive(kept[path], shape), shape)
        return trees.unflatten(params, kept)

    def is_due(step):
        return (step > 0) & (step < end) & (step % frequency == 0)

    def change(step, params, grads, mask):
        share = final_drop + (drop - final_drop) * (1 + jnp.cos(math.pi * step / end)) / 2
        drop_key, grow_key = jax.random.split(jax.random.fold_in(evidence.key, step))
        scores = pruner.scores(params, mask, evidence._replace(key=drop_key, grads=grads))
        growth = grown.scores(params, masks.dense(params), Evidence(key=grow_key, grads=grads))
        kept, leaves = trees.flatten(mask), trees.flatten(params)
        for path, of_units in scores.items():
            shape = leaves[path].shape
            there = units.alive(kept[path], shape)
            there = exchange(units, there, of_units, growth[path], share)
            kept[path] = units.expand(there, shape)
        return trees.unflatten(mask, kept)

    return changing(inner, start, is_due, change)


def at_random(params: Params, pruner: Pruner, sparsity: float, key: jax.Array) -> Mask:
    """The mask that removes as many units as the pruner would, drawn at random."""
    drawn = dataclasses.replace(pruner, criterion="random", aggregate=None)
    return prune(params, sparsity, drawn, key=key)


def exchange(
    units: Granularity,
    there: jax.Array,
    scores: jax.Array,
    growth: jax.Array,
    share: jax.Array | float,
) -> jax.Array:
    """Which units of a layer are there after `round(share k)` of its k units were exchanged.

    Args:
      units: what they are; in N:M every group keeps its number.
      there: booleans, the units that are there. All arrays are of one shape.
      scores: of those the lowest are dropped.
      growth: the highest among the missing and the dropped units are grown.
      share: of the k units, in [0, 1].

    Returns:
      Booleans, k of them True.
    """
    kept = jnp.sum(there)
    number = jnp.round(share * kept).astype(jnp.int32)
    lowest_first = jnp.where(there, scores, -jnp.inf).ravel()
    survivors = selection.keep_all_but_lowest(lowest_first, there.size - kept + number)
    return units.regrown(there, there & survivors.reshape(there.shape), growth)
