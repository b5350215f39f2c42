"""Learned scores: their start, exact masks, and the straight-through gradient by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax.pruning import CRITERIA, Evidence, Pruner, learned, prune

rng = np.random.default_rng(0)
PARAMS = {
    "conv": jnp.asarray(rng.normal(size=(3, 3, 2, 4)), jnp.float32),
    "dense": jnp.asarray(rng.normal(size=(8, 5)), jnp.float32),
    "bias": jnp.ones(5),
}
SLOPES = jax.tree.map(lambda w: jnp.asarray(rng.normal(size=w.shape), jnp.float32), PARAMS)


def masked_sum(params, scores, pruner, removal):
    """sum c w m(s), linear in the effective weights."""
    mask = pruner.mask(params, pruner.initial(params), removal, Evidence(scores=scores))
    effective = learned.effective(params, scores, mask)
    return sum(jax.tree.leaves(jax.tree.map(lambda c, w: jnp.sum(c * w), SLOPES, effective)))


def test_scores_begin_as_the_scaled_weights():
    scores = learned.initial(PARAMS)
    for path, fan_in in (("conv", 18), ("dense", 8)):
        w = np.asarray(PARAMS[path])
        np.testing.assert_allclose(
            scores[path], np.sqrt(6 / fan_in) * w / np.abs(w).max(), rtol=1e-6
        )
    for allocation in ("uniform", "erk"):
        first = prune(
            PARAMS, 0.7, Pruner("learned", allocation=allocation), evidence=Evidence(scores=scores)
        )
        second = prune(PARAMS, 0.7, Pruner(allocation=allocation))
        jax.tree.map(np.testing.assert_array_equal, first, second)
    assert not np.any(learned.initial({"w": jnp.zeros((2, 2))})["w"])
    assert not np.any(learned.initial({"bias": jnp.ones((2, 2))})["bias"])


@pytest.mark.parametrize("granularity", ["weight", "filter", "2:4"])
def test_the_gradient_goes_straight_through_also_to_what_is_removed(granularity):
    pruner = Pruner("learned", granularity, exclude=["conv"] if granularity == "2:4" else [])
    removal = pruner.removal(PARAMS, 0.5)
    scores = learned.initial(PARAMS)
    mask = prune(PARAMS, 0.5, pruner, evidence=Evidence(scores=scores))
    gradients = jax.jit(jax.grad(masked_sum, argnums=(0, 1)), static_argnums=2)
    of_params, of_scores = gradients(PARAMS, scores, pruner, removal)
    touched = pruner.paths(PARAMS)
    assert (
        touched
        == {"weight": ("conv", "dense"), "filter": ("conv",), "2:4": ("dense",)}[granularity]
    )
    for path in touched:
        expected = jnp.sign(scores[path]) * PARAMS[path] * SLOPES[path]
        np.testing.assert_allclose(of_scores[path], expected, rtol=1e-6)
        assert not np.all(mask[path])
        np.testing.assert_allclose(of_params[path], SLOPES[path] * mask[path], rtol=1e-6)
    for path in PARAMS.keys() - touched:
        np.testing.assert_array_equal(of_scores[path], 0)
        np.testing.assert_allclose(of_params[path], SLOPES[path], rtol=1e-6)


def test_scores_of_units_get_the_sum_over_their_weights():
    scores = {**PARAMS, "conv": jnp.array([3.0, -1.0, 0.5, -2.0]).reshape(1, 1, 1, 4)}
    pruner = Pruner("learned", "filter")
    mask = prune(PARAMS, 0.5, pruner, evidence=Evidence(scores=scores))
    np.testing.assert_array_equal(mask["conv"].ravel(), [True, False, False, True])
    found = jax.grad(masked_sum, argnums=1)(PARAMS, scores, pruner, pruner.removal(PARAMS, 0.5))
    sums = jnp.sum(PARAMS["conv"] * SLOPES["conv"], axis=(0, 1, 2), keepdims=True)
    np.testing.assert_allclose(found["conv"], jnp.sign(scores["conv"]) * sums, rtol=1e-5)


def test_the_mask_is_of_zeros_and_ones_and_its_derivative_one():
    importance, keep = jnp.array([0.3, 0.7, 0.7]), jnp.array([False, False, True])
    value, back = jax.vjp(lambda s: learned.straight_through(s, keep), importance)
    np.testing.assert_array_equal(value, [0, 0, 1])
    np.testing.assert_array_equal(back(jnp.array([5.0, -6.0, 7.0]))[0], [5, -6, 7])


def test_training_scores_alone_finds_the_weights_that_matter():
    # Only the odd columns help; they are the smaller ones, so magnitude would remove them.
    w = jnp.tile(jnp.array([1.0, 0.5]), (4, 4))
    target = jnp.tile(jnp.array([0.0, 0.5]), (4, 4))
    params, pruner = {"w": w}, Pruner("learned")
    removal = pruner.removal(params, 0.5)

    def loss(scores):
        mask = pruner.mask(params, pruner.initial(params), removal, Evidence(scores=scores))
        return jnp.sum((learned.effective(params, scores, mask)["w"] - target) ** 2)

    step = jax.jit(lambda s: jax.tree.map(lambda x, g: x - 0.05 * g, s, jax.grad(loss)(s)))
    scores = learned.initial(params)
    assert float(loss(scores)) > 8
    for _ in range(100):
        scores = step(scores)
    assert float(loss(scores)) == 0
    np.testing.assert_array_equal(
        CRITERIA["learned"](params, Evidence(scores=scores))["w"] >= 0, True
    )
