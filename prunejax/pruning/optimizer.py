"""Pruning inside any Optax optimiser: two lines in somebody else's training loop.

    optimizer = pruning.optimizer(optax.adam(1e-3), pruning.Pruner(), pruning.cubic(0.9, end=3_000))
    params = optax.apply_updates(params, updates)  # as always; pruned weights come out as zeros

Masking gradients alone is not enough: momentum and weight decay revive pruned weights. Here the
update itself brings a pruned weight to exactly zero, and its moments stay zero too. Updates are
added, so what is infinite or no number stays so: begin with `masks.apply(params, mask)`.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from prunejax import checks, masks, trees
from prunejax.pruning.evidence import Evidence
from prunejax.pruning.pruner import Pruner
from prunejax.pruning.schedules import Schedule

Params = Any
Mask = Any


class MaskedState(NamedTuple):
    """State of `masked`, `optimizer` and `regrowing`.

    Attributes:
      step: updates made so far.
      mask: what is kept now.
      inner: state of the wrapped optimiser.
    """

    step: jax.Array
    mask: Mask
    inner: optax.OptState


def masked(
    inner: optax.GradientTransformation, mask: Mask
) -> optax.GradientTransformationExtraArgs:
    """`inner` with the weights and moments outside `mask` held at zero.

    Args:
      inner: any Optax optimiser.
      mask: as `prune` gives it.
    """

    def init(params):
        masks.validate(params, mask)
        # A copy, for the state may be donated.
        own = jax.tree.map(jnp.array, mask)
        return MaskedState(jnp.zeros((), jnp.int32), own, inner.init(params))

    def update(grads, state, params=None, **extra):
        updates, inner_state = _masked_update(inner, grads, state.inner, params, state.mask, extra)
        return updates, MaskedState(state.step + 1, state.mask, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def optimizer(
    inner: optax.GradientTransformation,
    pruner: Pruner,
    schedule: Schedule,
    key: jax.Array | None = None,
    *,
    nested: bool = True,
    evidence: Evidence | None = None,
) -> optax.GradientTransformationExtraArgs:
    """`inner`, pruning as the schedule says and holding what is pruned, and its moments, at zero.

    The mask changes after the update of a scheduled step, from the weights as that update left
    them. Criteria of the gradient take that of the step, with respect to the weights before it,
    unless `evidence` has an objective of its own.

    Args:
      inner: any Optax optimiser.
      pruner: what to remove.
      schedule: when, and to which sparsity.
      key: for criteria that draw at random; that of `evidence` where None.
      nested: what is gone stays gone. False lets every change choose among all weights, as AC/DC
        does: those that come back start from zero.
      evidence: data, objective and network, for criteria that need them.

    Raises:
      ValueError: a schedule without steps, or one whose steps do not increase or are no integers
        from 0 on; a sparsity outside [0, 1), or one that falls although masks are nested; missing
        evidence. On `init`: whatever `Pruner.removal`
        objects to.
    """
    changes = [step for step, _ in schedule]
    for step, sparsity in schedule:
        checks.integer("a step of schedule", step, least=0)
        checks.number("sparsity", sparsity, within="[0, 1)")
    if not changes or changes != sorted(set(changes)):
        raise ValueError(f"schedule has the steps {changes}; one or more, increasing, are needed.")
    for (_, before), (step, after) in itertools.pairwise(schedule):
        if nested and after < before - 1e-12:
            raise ValueError(
                f"schedule falls from {before} to {after} at step {step}, but masks are nested; "
                "pass nested=False to let weights come back."
            )
    evidence = (evidence or Evidence()).keyed(key)
    pruner.check(evidence._replace(grads=()))  # the step will bring the gradient
    steps = jnp.array(changes, jnp.int32)

    def counts(params):
        groups = [
            pruner.removal(params, sparsity, on_the_way=number < len(schedule))
            for number, (_, sparsity) in enumerate(schedule, 1)
        ]
        return {group: jnp.array([g[group] for g in groups], jnp.int32) for group in groups[0]}

    def start(params):
        counts(params)  # errors before the first step
        return pruner.initial(params)

    def change(step, params, grads, mask):
        index = jnp.searchsorted(steps, step)
        removal = {group: count[index] for group, count in counts(params).items()}
        now = evidence._replace(key=jax.random.fold_in(evidence.key, step), grads=grads)
        return pruner.mask(params, mask if nested else pruner.initial(params), removal, now)

    return changing(inner, start, lambda step: jnp.any(steps == step), change)


def changing(
    inner: optax.GradientTransformation,
    start: Callable[[Params], Mask],
    is_due: Callable[[jax.Array], jax.Array],
    change: Callable[[jax.Array, Params, Params, Mask], Mask],
) -> optax.GradientTransformationExtraArgs:
    """`inner` under a mask that changes after the update of some steps.

    What the new mask keeps has its update; what it removes goes to zero with its moments; what it
    brings back starts from zero, with moments of zero.

    Args:
      inner: any Optax optimiser.
      start: `params -> mask`, the first mask.
      is_due: `step -> whether the mask changes after this step's update`.
      change: `(step, updated params, gradient, mask) -> mask`, of unchanging shapes; the gradient
        is that of the step, with respect to all weights.
    """

    def init(params):
        mask = jax.tree.map(jnp.array, start(params))
        return MaskedState(jnp.zeros((), jnp.int32), mask, inner.init(params))

    def update(grads, state, params=None, **extra):
        updates, inner_state = _masked_update(inner, grads, state.inner, params, state.mask, extra)

        def changed():
            return change(state.step, optax.apply_updates(params, updates), grads, state.mask)

        mask = jax.lax.cond(is_due(state.step), changed, lambda: state.mask)
        return (
            _zeroing(updates, params, mask),
            MaskedState(state.step + 1, mask, _mask_moments(inner, inner_state, mask)),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def mask_of(state: optax.OptState, params: Params | None = None) -> Mask | None:
    """The mask inside an optimiser's state, wherever it sits; None where there is none.

    Args:
      state: of an optimiser.
      params: the parameters; needed where each of several optimisers has some of them
        (`optax.multi_transform`). Their masks are put together, what none of them prunes is kept.

    Raises:
      ValueError: masks of some of the parameters, without `params`.
    """
    is_masked = lambda node: isinstance(node, MaskedState)  # noqa: E731
    found = [s.mask for s in jax.tree.leaves(state, is_leaf=is_masked) if is_masked(s)]
    if not found:
        return None
    is_absent = lambda node: isinstance(node, optax.MaskedNode)  # noqa: E731
    parts = jax.tree.leaves(found, is_leaf=is_absent)
    if len(found) == 1 and not any(map(is_absent, parts)):
        return found[0]
    if params is None:
        raise ValueError(
            "params is None; the state holds masks of parts of the parameters, pass these too."
        )
    by_path = {path: keep for mask in found for path, keep in trees.flatten(mask).items()}
    return trees.map_with_path(lambda path, _: by_path.get(path, jnp.array(True)), params)


def _masked_update(inner, grads, inner_state, params, mask, extra):
    if params is None:
        raise ValueError("params is None; pruning needs optimizer.update(grads, state, params).")
    # What the step brings beside the gradient, such as its loss, is for the inner optimiser.
    inner = optax.with_extra_args_support(inner)
    updates, inner_state = inner.update(masks.apply(grads, mask), inner_state, params, **extra)
    return _zeroing(updates, params, mask), _mask_moments(inner, inner_state, mask)


def _zeroing(updates, params, mask):
    """Updates that bring the finite weights outside the mask to zero exactly: p + (-p) = 0."""
    return jax.tree.map(lambda u, p, keep: jnp.where(keep, u, -p), updates, params, mask)


def _mask_moments(inner, inner_state, mask):
    by_path = dict(jax.tree_util.tree_leaves_with_path(mask))

    def leaf(path, moment):
        # A weight's moment may be a list of several (SM3): its path begins with the weight's.
        prefixes = (path[:length] for length in range(len(path), -1, -1))
        keep = next((by_path[prefix] for prefix in prefixes if prefix in by_path), True)
        # Sums over weights (Adafactor) are left alone.
        return (
            jnp.where(keep, moment, jnp.zeros_like(moment)) if masks.fits(keep, moment) else moment
        )

    def zero_outside(moments):
        # Weights that another optimiser has are no leaves here.
        return jax.tree_util.tree_map_with_path(leaf, moments)

    whole = lambda _: True  # noqa: E731
    return optax.tree.map_params(inner, zero_outside, inner_state, is_leaf=whole)
