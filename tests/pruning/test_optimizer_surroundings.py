"""Pruning inside an Optax optimiser, with extra arguments and on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from prunejax import pruning

# -- what a step brings beside the gradient --------------------------------------------------------


def halving(seen):
    """Plain descent whose rate is the loss that the step brings, noted as it comes."""

    def update(updates, state, params=None, *, value, **extra):
        seen.append((value, extra))
        return jax.tree.map(lambda g: -value * g, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


WRAPS = {
    "masked": lambda inner: pruning.masked(inner, {"w": jnp.array([[True, False]])}),
    "optimizer": lambda inner: pruning.optimizer(inner, pruning.Pruner(), pruning.one_shot(0.5)),
    "regrowing": lambda inner: pruning.regrowing(
        inner, pruning.Pruner(), 0.5, end=5, mask={"w": jnp.array([[True, False]])}
    ),
}


@pytest.mark.parametrize("outer", [lambda tx: tx, lambda tx: optax.chain(optax.identity(), tx)])
@pytest.mark.parametrize("wrap", WRAPS)
def test_the_inner_optimiser_has_what_the_step_brings(wrap, outer):
    params, grads, seen = {"w": jnp.array([[5.0, -2.0]])}, {"w": jnp.array([[4.0, 1.0]])}, []
    tx = outer(WRAPS[wrap](halving(seen)))
    updates, _ = tx.update(grads, tx.init(params), params, value=0.25, other=7)
    np.testing.assert_array_equal(updates["w"], [[-1.0, 2.0]])
    assert seen == [(0.25, {"other": 7})]
    # One that wants nothing of it is not asked to take it.
    plain = outer(WRAPS[wrap](optax.sgd(0.5)))
    updates, _ = plain.update(grads, plain.init(params), params, value=0.25)
    np.testing.assert_array_equal(updates["w"], [[-2.0, 2.0]])


def test_polyak_steps_are_those_of_the_kept_weights_alone():
    # f = |w|^2 / 2 from w: the step f / |g|^2 of the kept weights alone is 1/2 of the gradient.
    params = {"w": jnp.array([[3.0, 4.0, 100.0]])}
    tx = pruning.masked(optax.polyak_sgd(), {"w": jnp.array([[True, True, False]])})
    updates, _ = tx.update(params, tx.init(params), params, value=12.5)
    np.testing.assert_allclose(updates["w"], [[-1.5, -2.0, -100.0]], rtol=1e-6)


# -- on several devices ----------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["weight", "column"])
def test_mask_and_moments_lie_where_the_weights_lie(granularity):
    """Columns on two devices: the state follows, and nothing else changes."""
    mesh = Mesh(np.array(jax.devices()[:2]), ("model",))
    over_columns, everywhere = NamedSharding(mesh, P(None, "model")), NamedSharding(mesh, P())
    rng = np.random.default_rng(0)
    alone = {"w": jnp.asarray(rng.normal(size=(4, 6)), jnp.float32), "b": jnp.ones(6)}
    shardings = {"w": over_columns, "b": everywhere}
    sharded = jax.device_put(alone, shardings)
    pruner = pruning.Pruner(granularity=granularity)
    tx = pruning.optimizer(optax.adam(0.1), pruner, pruning.one_shot(0.5, step=1))

    @jax.jit
    def update(params, state):
        grads = jax.tree.map(lambda w: jnp.sin(3 * w), params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    results = []
    for params in (alone, sharded):
        state = jax.jit(tx.init)(params)
        for _ in range(3):
            params, state = update(params, state)
        results.append((params, state))
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7), *results
    )
    assert int(results[1][1].mask["w"].sum()) == results[1][1].mask["w"].size // 2
    params, state = results[1]
    found = [params, state.inner[0].mu, state.inner[0].nu]
    assert len(found) == 3
    for tree in found:
        assert tree["w"].sharding.is_equivalent_to(over_columns, 2)
        assert tree["b"].sharding.is_equivalent_to(everywhere, 1)
    assert state.mask["w"].sharding.is_equivalent_to(over_columns, 2)
