"""The compiled parts of a run: lanes are filled, advanced and settled, on all devices of a mesh."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prunejax import norms
from prunejax.attacks.attack import Attack, Found
from prunejax.attacks.goal import Goal
from prunejax.attacks.inputs import KEYS
from prunejax.canonical import canonical
from prunejax.classifier import Classifier

# The budget may be exceeded by the rounding of float32 images, and by no more.
ROUNDING = 1e-6
# A minimum-norm attack ends so near the boundary that the next program's rounding may undo it. What
# a fresh pass does not confirm goes further, by these shares of its distance in turn.
BEYOND = (1e-5, 1e-4, 1e-3)
# In the place of an example's index, for the key of what all of them draw in common.
NO_INDEX = 2**32 - 1


class Checked(NamedTuple):
    """What the lanes hold in the end, one entry a lane; see `Diagnostics` for the last three."""

    found: Found
    sizes: dict[str, jax.Array]
    diverged: jax.Array
    outside: jax.Array
    unconfirmed: jax.Array


class Programs(NamedTuple):
    """Start lanes, advance all of them by some steps, look at what they found.

    `start` is never run by itself, only asked for shapes.
    """

    start: Any
    fill: Callable[..., Any]
    advance: Callable[..., Any]
    settle: Callable[..., Any]


@functools.cache
def compiled(attack: Attack, mesh: Mesh) -> Programs:
    """The compiled parts, over lanes sharded along the mesh. Cached: equal attacks share them."""
    one, lane = PartitionSpec(), PartitionSpec("data")

    def sharded(function, in_specs, out_specs, **jit):
        return jax.jit(
            jax.shard_map(
                function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
            ),
            **jit,
        )

    def fill(classifier, examples, key, state, fresh):
        started, clean = canonical(_start(attack))(classifier, examples, key)
        return jax.tree.map(functools.partial(_select, fresh), started, state), clean

    def advance(classifier, state, steps):
        state, taken = attack.advance(classifier, state, steps)
        return state, jax.vmap(attack.finished)(state), taken

    def settle(classifier, state, images, labels, eps):
        found = canonical(jax.vmap(attack.result, in_axes=(None, 0)))(classifier, state)
        # Nobody asks what the clean image is that stands for no success: one pass serves both.
        last = jnp.clip(jax.vmap(attack.iterate)(state), 0, 1)
        goal, shares = wanted(attack, labels), BEYOND if attack.may_go_on else ()
        x, logits = _confirm(classifier, found, images.reshape(last.shape), last, goal, shares)
        image = x.reshape(images.shape)
        distance = jax.vmap(norms.get(attack.norm).distance)(image - images)
        within = distance <= eps * (1 + ROUNDING) + ROUNDING
        inside = within & jnp.all(
            (found.image >= 0) & (found.image <= 1), axis=tuple(range(1, x.ndim))
        )
        confirmed = goal.reached(logits)
        success = found.success & confirmed & within
        return Checked(
            Found(_select(success, image, images), success, jnp.where(success, distance, jnp.inf)),
            sizes={n: jax.vmap(norm.distance)(image - images) for n, norm in norms.NORMS.items()},
            # A class that is masked has a logit of minus infinity, and means it.
            diverged=~(logits < jnp.inf).all(axis=1) | _any_nan(state),
            outside=found.success & ~inside,
            unconfirmed=found.success & ~confirmed,
        )

    return Programs(
        start=jax.jit(_start(attack)),
        fill=sharded(fill, (one, lane, one, lane, lane), lane),
        advance=sharded(advance, (one, lane, one), lane, donate_argnums=1),
        settle=sharded(settle, (one, lane, lane, lane, lane), lane),
    )


def _confirm(classifier, found: Found, clean, last, goal: Goal, shares: tuple[float, ...]):
    """Images that count as found, and logits from fresh passes: where nothing is, those of `last`.

    Success that a pass denies is tried again, farther from the clean image by each share in turn.
    """
    further = jnp.array([*shares, 0.0])
    predict = canonical(_predict)

    def denied(x_and_logits):
        return found.success & ~goal.reached(x_and_logits[1])

    def look(carry):
        number, x, _ = carry
        logits = predict(classifier, _select(found.success, x, last))
        beyond = jnp.clip(clean + (1 + further[number]) * (found.image - clean), 0, 1)
        return number + 1, _select(denied((x, logits)), beyond, x), (x, logits)

    def unsure(carry):
        number, _, seen = carry
        return (number == 0) | ((number <= len(shares)) & denied(seen).any())

    x = jnp.clip(found.image, 0, 1)
    logits = jax.eval_shape(predict, classifier, x)
    blank = jnp.full(logits.shape, -jnp.inf, logits.dtype)
    return jax.lax.while_loop(unsure, look, (0, x, (x, blank)))[2]


def _predict(classifier: Classifier, images: jax.Array) -> jax.Array:
    return classifier(images)


def _select(which: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    return jnp.where(which.reshape(which.shape + (1,) * (new.ndim - 1)), new, old)


def _any_nan(state: Any) -> jax.Array:
    """Lanes with a NaN anywhere in their state; infinities are losses and distances to begin at."""
    return functools.reduce(
        jnp.logical_or,
        (
            jnp.isnan(leaf).reshape(len(leaf), -1).any(axis=1)
            for leaf in jax.tree.leaves(state)
            if jnp.issubdtype(leaf.dtype, jnp.inexact)
        ),
    )


def wanted(attack: Attack, labels: jax.Array) -> Goal:
    """What counts as success, whatever an attempt is heading for."""
    return Goal(None, labels) if attack.targeted else Goal(labels)


def _start(attack: Attack) -> Callable[..., Any]:
    """Runs `init` for a batch of examples, each with the key of its index and attempt.

    Returns states, and which clean images are what the attacker wants already.
    """

    def start(classifier, examples, key):
        def one(image, logits, label, index, attempt, eps):
            own_key = jax.random.fold_in(jax.random.fold_in(key, index), attempt)
            goal = attack.goal(logits, label, attempt)
            state = attack.init(classifier, image, goal, own_key, eps)
            common = jax.random.fold_in(jax.random.fold_in(key, NO_INDEX), attempt)
            return attack.sharing(state, common), goal.given(logits)

        images, labels, *others = examples
        return jax.vmap(one)(images, classifier(images), labels, *others)

    return start


def blank(shapes: Any, key: jax.Array, sharding: NamedSharding) -> Any:
    """A state of these shapes with nothing in it, so that the first fill is like any other."""

    def fill(leaf):
        if _is_key(leaf):
            return jax.device_put(jnp.broadcast_to(key, leaf.shape), sharding)
        return jax.device_put(np.zeros(leaf.shape, leaf.dtype), sharding)

    return jax.tree.map(fill, shapes)


def parked(state: Any, which: np.ndarray) -> list[Any]:
    """The states of some lanes, each by itself, on the host."""
    whole = jax.device_get(
        jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, state)
    )
    return [jax.tree.map(lambda leaf, n=n: leaf[n].copy(), whole) for n in np.flatnonzero(which)]


def resumed(shapes: Any, which: np.ndarray, states: list[Any], sharding: NamedSharding) -> Any:
    """The states of all lanes: in some of them what was `parked`, in the others nothing."""

    def fill(shape, *parts):
        whole = np.zeros((len(which), *parts[0].shape), parts[0].dtype)
        whole[which] = parts
        leaf = jax.device_put(whole, sharding)
        return jax.random.wrap_key_data(leaf, impl=KEYS) if _is_key(shape) else leaf

    return jax.tree.map(fill, shapes, *states)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
