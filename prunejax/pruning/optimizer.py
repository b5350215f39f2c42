"""Pruning inside any Optax optimiser: two lines in somebody else's training loop.

    optimizer = pruning.optimizer(optax.adam(1e-3), pruning.Pruner(), pruning.cubic(0.9, end=3_000))
    params = optax.apply_updates(params, updates)  # as always; pruned weights come out as zeros

Masking gradients alone is not enough: momentum and weight decay revive pruned weights. Here the
update itself brings a pruned weight to exactly zero, and its moments stay zero too.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from prunejax import masks
from prunejax.pruning.pruner import Pruner
from prunejax.pruning.schedules import Schedule

Params = Any
Mask = Any


class MaskedState(NamedTuple):
    """State of `masked` and `optimizer`.

    Attributes:
      step: updates made so far.
      mask: what is kept now.
      inner: state of the wrapped optimiser.
    """

    step: jax.Array
    mask: Mask
    inner: optax.OptState


def masked(inner: optax.GradientTransformation, mask: Mask) -> optax.GradientTransformation:
    """`inner` with the weights and moments outside `mask` held at zero.

    Args:
      inner: any Optax optimiser.
      mask: as `prune` gives it.
    """

    def init(params):
        masks.validate(params, mask)
        return MaskedState(jnp.zeros((), jnp.int32), mask, inner.init(params))

    def update(grads, state, params=None):
        updates, inner_state = _masked_update(inner, grads, state.inner, params, state.mask)
        return updates, MaskedState(state.step + 1, state.mask, inner_state)

    return optax.GradientTransformation(init, update)


def optimizer(
    inner: optax.GradientTransformation,
    pruner: Pruner,
    schedule: Schedule,
    key: jax.Array | None = None,
) -> optax.GradientTransformation:
    """`inner`, pruning as the schedule says and holding what is pruned, and its moments, at zero.

    The mask changes after the update of a scheduled step, from the weights as that update left
    them. Masks are nested: what is gone stays gone.

    Args:
      inner: any Optax optimiser.
      pruner: what to remove.
      schedule: when, and to which sparsity.
      key: for criteria that draw at random.

    Raises:
      ValueError: a schedule without steps, or one whose steps do not increase.
    """
    changes = [step for step, _ in schedule]
    if not changes or changes != sorted(set(changes)):
        raise ValueError(f"schedule has the steps {changes}; one or more, increasing, are needed.")
    key = jax.random.key(0) if key is None else key
    steps = jnp.array(changes, jnp.int32)

    def init(params):
        return MaskedState(jnp.zeros((), jnp.int32), pruner.initial(params), inner.init(params))

    def update(grads, state, params=None):
        if params is None:
            raise ValueError(
                "params is None; pruning needs optimizer.update(grads, state, params)."
            )
        groups = [pruner.removal(params, sparsity) for _, sparsity in schedule]
        table = {group: jnp.array([g[group] for g in groups], jnp.int32) for group in groups[0]}
        updates, inner_state = _masked_update(inner, grads, state.inner, params, state.mask)

        def refresh():
            index = jnp.searchsorted(steps, state.step)
            removal = {group: counts[index] for group, counts in table.items()}
            updated = optax.apply_updates(params, updates)
            mask_key = jax.random.fold_in(key, state.step)
            return pruner.mask(updated, state.mask, removal, mask_key)

        is_scheduled = jnp.any(steps == state.step)
        mask = jax.lax.cond(is_scheduled, refresh, lambda: state.mask)
        return (
            _zeroing(updates, params, mask),
            MaskedState(state.step + 1, mask, _mask_moments(inner, inner_state, mask)),
        )

    return optax.GradientTransformation(init, update)


def mask_of(state: optax.OptState) -> Mask | None:
    """The mask inside an optimiser's state, wherever it sits; None where there is none."""
    is_masked = lambda node: isinstance(node, MaskedState)  # noqa: E731
    found = [s for s in jax.tree.leaves(state, is_leaf=is_masked) if is_masked(s)]
    return found[0].mask if found else None


def _masked_update(inner, grads, inner_state, params, mask):
    if params is None:
        raise ValueError("params is None; pruning needs optimizer.update(grads, state, params).")
    updates, inner_state = inner.update(masks.apply(grads, mask), inner_state, params)
    return _zeroing(updates, params, mask), _mask_moments(inner, inner_state, mask)


def _zeroing(updates, params, mask):
    """Updates that bring the weights outside the mask to zero exactly: p + (-p) = 0."""
    return jax.tree.map(lambda u, p, keep: jnp.where(keep, u, -p), updates, params, mask)


def _mask_moments(inner, inner_state, mask):
    is_absent = lambda node: isinstance(node, optax.MaskedNode)  # noqa: E731

    def zero_outside(moment, keep):
        # Weights that another optimiser has, and sums over weights (Adafactor), are left alone.
        if is_absent(moment) or not masks.fits(keep, moment):
            return moment
        return jnp.where(keep, moment, jnp.zeros_like(moment))

    return optax.tree.map_params(inner, zero_outside, inner_state, mask, is_leaf=is_absent)
