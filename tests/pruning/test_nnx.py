"""Parameters of Flax NNX: readable paths, masks that apply, optimisers that hold them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from prunejax import masks, pruning, trees
from prunejax.pruning import Evidence, Pruner, prune


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)])

    def __call__(self, x):
        x = nnx.relu(self.conv(x)).mean((1, 2))
        return self.layers[1](nnx.relu(self.layers[0](x)))


GRAPH, STATE = nnx.split(Net(nnx.Rngs(0)), nnx.Param)


def loss(state, batch):
    return jnp.mean((nnx.merge(GRAPH, state)(batch) - 1) ** 2)


BATCH = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 5, 1)), jnp.float32)


def test_paths_are_readable_and_masks_apply():
    paths = trees.prunable(STATE)
    assert paths == ("conv/kernel", "layers/0/kernel", "layers/1/kernel")
    pruner = Pruner(allocation={"conv/kernel": 1.0, "layers/*": 0.25}, include="*kernel")
    mask = prune(STATE, 27 / 72, pruner)
    assert jax.tree.structure(mask) == jax.tree.structure(STATE)
    kept = {path: int(np.sum(mask_)) for path, mask_ in trees.flatten(mask).items()}
    assert [kept[path] for path in paths] == [36, 6, 3]
    pruned = masks.apply(STATE, mask)
    for path, leaf in trees.flatten(pruned).items():
        expected = np.where(trees.flatten(mask)[path], trees.flatten(STATE)[path], 0)
        np.testing.assert_array_equal(leaf, expected)
    # The module runs with them.
    assert nnx.merge(GRAPH, pruned)(BATCH).shape == (3, 2)


@pytest.mark.parametrize("name", ["snip", "grasp"])
def test_criteria_score_states(name):
    evidence = Evidence(loss=loss, batches=(BATCH,))
    mask = prune(STATE, 0.5, Pruner(name, allocation="global"), evidence=evidence)
    gone = sum(int((~leaf).sum()) for leaf in jax.tree.leaves(mask))
    assert gone == 36


def run(state, images):
    return nnx.merge(GRAPH, state)(images)


def test_criteria_of_maps_score_states():
    """The network takes the state alone: `variables` is None."""
    evidence = Evidence(network=run, batches=((BATCH, jnp.zeros(3, int)),))
    scores = trees.flatten(pruning.scores(STATE, "expected_abs", evidence=evidence))
    net = nnx.merge(GRAPH, STATE)
    maps = nnx.relu(net.conv(BATCH))
    hidden = nnx.relu(net.layers[0](maps.mean((1, 2))))
    for path, expected in (("conv/kernel", maps), ("layers/0/kernel", hidden)):
        mean = expected.reshape(-1, expected.shape[-1]).mean(0)
        np.testing.assert_allclose(scores[path].ravel(), mean, rtol=1e-5, atol=1e-6)
    assert scores["layers/1/kernel"].shape == ()


def test_the_optimizer_holds_what_is_gone():
    tx = pruning.optimizer(optax.adam(0.1), Pruner(), pruning.one_shot(0.5))
    params, state = STATE, tx.init(STATE)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params, BATCH), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(3):
        params, state = step(params, state)
    mask = trees.flatten(pruning.mask_of(state))
    for path, leaf in trees.flatten(params).items():
        keep = np.broadcast_to(mask[path], leaf.shape)
        np.testing.assert_array_equal(np.asarray(leaf)[~keep], 0)
        if path in trees.prunable(STATE):
            assert (~keep).sum() == leaf.size // 2
