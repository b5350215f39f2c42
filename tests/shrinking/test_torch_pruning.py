"""Torch-Pruning makes the same smaller networks of the same weights, where it is installed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import torch_networks
from prunejax import models, shrinking, trees
from prunejax.classifier import Classifier, Network
from prunejax.evaluation import work
from prunejax.pruning import Pruner

torch = pytest.importorskip("torch", reason="needs torch, of the extra 'peers'")
torch_pruning = pytest.importorskip(
    "torch_pruning", reason="needs torch-pruning, of the extra 'peers'"
)

SHAPE = (32, 32, 3)
NETWORKS = ("vgg16", "resnet18")  # of their real widths


class MagnitudeOfMakers(torch_pruning.importance.MagnitudeImportance):
    """Sum of |w|^p over the filters that make a channel, the mean where several are added.

    Their own adds the weights that read the channel, and its normalisation's scale.
    """

    makers = (torch_pruning.prune_conv_out_channels, torch_pruning.prune_linear_out_channels)

    def __init__(self, p):
        super().__init__(p=p, group_reduction="mean", normalizer=None)

    def __call__(self, group):
        return super().__call__([item for item in group if item.dep.pruning_fn in self.makers])


@functools.cache
def whole(name):
    """All variables are random, also those of the normalisation, which start at 0 and 1."""
    network = Network(models.create(name, num_classes=10))
    rng = np.random.default_rng(0)

    def leaf(path, like):
        values = rng.standard_normal(like.shape, np.float32)
        if path.endswith("/kernel"):
            return values / np.sqrt(np.prod(like.shape[:-1]))
        return np.abs(values) + 0.5 if path.endswith(("/scale", "/var")) else values

    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), SHAPE))
    return Classifier(trees.map_with_path(leaf, shapes), network)


@functools.cache
def shrunk(name, sparsity, aggregate="sum"):
    classifier = whole(name)
    traced = shrinking.structure_of(classifier.apply_fn, classifier.variables, SHAPE)
    mask = shrinking.channel_mask(
        traced, classifier.variables, sparsity, Pruner(aggregate=aggregate)
    )
    return shrinking.shrink(classifier, mask, SHAPE, check=False)


def theirs(name, sparsity, importance):
    network = torch_networks.network_of(name, whole(name).variables).eval()
    torch_pruning.pruner.MagnitudePruner(
        network,
        torch.zeros(1, 3, 32, 32),
        importance=importance,
        pruning_ratio=sparsity,
        ignored_layers=[network[-1]],  # its outputs are the logits
    ).step()
    return network


def flops(network):
    """As we count them: multiplications and additions of convolutions and dense layers.

    They count a multiplication and its addition as one, and those of biases, normalisation, ReLU
    and pooling besides.
    """
    _, _, by_layer, _ = torch_pruning.utils.count_ops_and_params(
        network, torch.zeros(1, 3, 32, 32), layer_wise=True
    )
    total = 0
    for layer, operations in by_layer.items():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            assert isinstance(layer, torch.nn.Linear) == (layer.bias is not None)
            biases = 0 if layer.bias is None else layer.out_features
            total += 2 * (operations - biases)
    return total


@pytest.mark.parametrize("sparsity", [0.5, 0.75])
@pytest.mark.parametrize("name", NETWORKS)
def test_their_own_choice_has_the_same_parameters_and_flops(name, sparsity):
    ours = shrunk(name, sparsity)
    network = theirs(name, sparsity, torch_pruning.importance.MagnitudeImportance(p=2))
    assert trees.size(ours.params) == sum(p.numel() for p in network.parameters())
    assert sum(layer.flops for layer in work.count(ours, SHAPE)) == flops(network)


@pytest.mark.parametrize(
    ("name", "p", "aggregate", "sparsity"),
    [
        ("vgg16", 1, "sum", 0.5),
        ("vgg16", 2, "l2", 0.75),
        # The mean of several squares ranks otherwise than that of their roots.
        ("resnet18", 1, "sum", 0.5),
        ("resnet18", 1, "sum", 0.75),
    ],
)
def test_the_same_scores_keep_the_same_channels_and_all_their_weights(name, p, aggregate, sparsity):
    ours = torch_networks.network_of(name, shrunk(name, sparsity, aggregate).variables)
    expected = theirs(name, sparsity, MagnitudeOfMakers(p)).state_dict()
    found = ours.state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("name", NETWORKS)
def test_both_give_the_same_logits(name):
    images = np.random.default_rng(1).random((2, *SHAPE), np.float32)
    network = theirs(name, 0.5, MagnitudeOfMakers(1))
    with torch.no_grad():
        expected = network(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    with jax.default_matmul_precision("highest"):
        found = jax.jit(lambda classifier, x: classifier(x))(shrunk(name, 0.5), jnp.asarray(images))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_where_the_share_is_no_whole_number_they_keep_at_most_one_channel_fewer():
    # 0.3 of 64 are 19.2: we remove 19, the nearest; they keep the whole part of 44.8, remove 20.
    name = "resnet18"
    states = (
        torch_networks.network_of(name, whole(name).variables).state_dict(),
        torch_networks.network_of(name, shrunk(name, 0.3).variables).state_dict(),
        theirs(name, 0.3, torch_pruning.importance.MagnitudeImportance(p=2)).state_dict(),
    )
    *layers, last = [key for key in states[0] if key.endswith("weight")]
    for layer in layers:
        channels, ours, peers = (len(state[layer]) for state in states)
        assert ours == channels - round(0.3 * channels)
        assert peers == int((1 - 0.3) * channels)
        assert 0 <= ours - peers <= 1
    assert [len(state[last]) for state in states] == [10, 10, 10]
