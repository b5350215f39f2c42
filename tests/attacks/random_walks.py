"""Follows random searches query by query, and what must hold of each."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prunejax.attacks.goal import Goal
from tests.attacks.test_closed_form import length

KEY = jax.random.key(0)


class Walk(NamedTuple):
    """All proposals, and what was accepted, of a search on a batch of examples."""

    proposals: np.ndarray  # [steps, examples, ...]
    accepted: np.ndarray  # [steps + 1, examples, ...]: the start, and after each step
    losses: np.ndarray  # [steps + 1, examples]
    adversarial: np.ndarray
    chosen: np.ndarray | None  # [steps + 1, examples, units]


def walk(attack, problem, classifier, eps, steps: int) -> Walk:
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, np.arange(len(problem.images)))

    def one(image, label, key, eps):
        state = attack.init(classifier, image, Goal(label), key, eps)

        def body(state, _):
            key = jax.random.fold_in(state.key, state.step + 1)
            proposal = attack.propose(key, state)
            after = attack.step(classifier, state)
            return after, (proposal.x, seen(after))

        return seen(state), jax.lax.scan(body, state, None, length=steps)[1]

    def seen(state):
        return state.best.x, state.loss, state.adversarial, state.best.chosen

    eps = jnp.broadcast_to(jnp.asarray(eps, jnp.float32), problem.labels.shape)
    start, (proposals, after) = jax.device_get(
        jax.jit(jax.vmap(one))(problem.images, problem.labels, keys, eps)
    )
    whole = jax.tree.map(lambda a, b: np.concatenate([a[None], b.swapaxes(0, 1)]), start, after)
    return Walk(proposals.swapaxes(0, 1), *whole)


def assert_search_is_sound(seen: Walk, problem, norm, eps):
    """Every query is in ball and box, what is kept never gets worse, nothing follows success."""
    for x in (seen.proposals, seen.accepted):
        assert np.all((x >= 0) & (x <= 1))
        delta = x.astype(np.float64) - problem.images
        measured = length(delta.reshape(-1, *x.shape[2:]), norm).reshape(x.shape[:2])
        assert np.all(measured <= np.asarray(eps) * (1 + 1e-6) + 1e-6)
    assert np.all(np.diff(seen.losses, axis=0) >= 0)
    assert np.any(np.diff(seen.losses, axis=0) > 0)
    logits = seen.accepted.reshape(*seen.losses.shape, -1) @ problem.weights.T + problem.bias
    own = np.take_along_axis(logits, problem.labels[None, :, None], axis=2)[..., 0]
    np.put_along_axis(logits, problem.labels[None, :, None], -np.inf, axis=2)
    np.testing.assert_allclose(seen.losses, logits.max(axis=2) - own, atol=1e-4)
    done = seen.adversarial[:-1]
    assert done.any()
    assert not done.all()
    assert np.all(seen.adversarial[1:][done])
    assert np.array_equal(seen.accepted[1:][done], seen.accepted[:-1][done])
