"""The masks of torch.nn.utils.prune, where torch is installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax.pruning import Pruner, prune

torch = pytest.importorskip("torch", reason="needs torch, of the extra 'peers'")
from torch.nn.utils import prune as torch_prune  # noqa: E402

CONV = np.random.default_rng(0).normal(size=(3, 3, 6, 10)).astype(np.float32)
DENSE = np.random.default_rng(1).normal(size=(13, 7)).astype(np.float32)


def layer_of(leaf):
    """torch's layer with these weights: axes (out, in, ...)."""
    if leaf.ndim == 2:
        layer = torch.nn.Linear(*leaf.shape)
    else:
        layer = torch.nn.Conv2d(leaf.shape[2], leaf.shape[3], leaf.shape[0])
    order = (1, 0) if leaf.ndim == 2 else (3, 2, 0, 1)
    layer.weight.data = torch.tensor(leaf.transpose(order).copy())
    return layer


def torch_mask(layer):
    mask = layer.weight_mask.numpy().astype(bool)
    return mask.transpose((1, 0) if mask.ndim == 2 else (2, 3, 1, 0))


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.37, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("leaf", [CONV, DENSE], ids=["conv", "dense"])
def test_l1_keeps_the_same_weights_and_random_as_many(leaf, sparsity):
    params = {"w": jnp.asarray(leaf)}
    layer = layer_of(leaf)
    torch_prune.l1_unstructured(layer, "weight", amount=sparsity)
    mask = np.asarray(prune(params, sparsity, Pruner(guard=False))["w"])
    np.testing.assert_array_equal(mask, torch_mask(layer))
    layer = layer_of(leaf)
    torch_prune.random_unstructured(layer, "weight", amount=sparsity)
    mask = prune(params, sparsity, Pruner("random", guard=False), key=jax.random.key(1))["w"]
    assert int(mask.sum()) == torch_mask(layer).sum()


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.37, 0.5, 0.9])
@pytest.mark.parametrize(
    ("leaf", "granularity", "dim"),
    [(CONV, "filter", 0), (CONV, "channel", 1), (DENSE, "column", 0), (DENSE, "row", 1)],
)
def test_structured_l2_keeps_the_same_units(leaf, granularity, dim, sparsity):
    layer = layer_of(leaf)
    torch_prune.ln_structured(layer, "weight", amount=sparsity, n=2, dim=dim)
    pruner = Pruner(granularity=granularity, aggregate="l2", guard=False)
    mask = np.asarray(prune({"w": jnp.asarray(leaf)}, sparsity, pruner)["w"])
    np.testing.assert_array_equal(np.broadcast_to(mask, leaf.shape), torch_mask(layer))


def test_global_l1_keeps_the_same_weights_of_all_layers():
    layers = [layer_of(CONV), layer_of(DENSE)]
    torch_prune.global_unstructured(
        [(layer, "weight") for layer in layers], torch_prune.L1Unstructured, amount=0.8
    )
    params = {"a": jnp.asarray(CONV), "b": jnp.asarray(DENSE)}
    mask = prune(params, 0.8, Pruner(allocation="global"))
    for path, layer in zip(params, layers, strict=True):
        np.testing.assert_array_equal(mask[path], torch_mask(layer))
