"""Networks with unusual layers: the smaller one computes what the masked one does."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import masks, shrinking, trees
from prunejax.classifier import Classifier, Network
from prunejax.pruning import Pruner

SHAPE = (4, 4, 3)


def conv(width, size=3, **options):
    return nn.Conv(width, (size, size), **options)


def head(x):
    return nn.Dense(3)(x.reshape(x.shape[0], -1))


def squeeze_and_excitation(x):
    x = nn.relu(nn.BatchNorm(use_running_average=True)(conv(8)(x)))
    gate = nn.sigmoid(nn.Dense(8)(nn.silu(nn.Dense(4)(x.mean((1, 2))))))
    return head(x * gate[:, None, None, :])


def spatial_attention(x):
    x = nn.relu(conv(6)(x))
    return head(x * nn.sigmoid(conv(1)(x)))


def attention(x):
    x = conv(8)(x).reshape(x.shape[0], -1, 8)
    x = nn.MultiHeadDotProductAttention(2)(x, x)
    return nn.Dense(3)(x.mean(1))


def gated_linear_unit(x):
    return head(nn.glu(conv(8)(x)))


def one_layer_twice(x):
    layer = conv(6)
    return head(nn.relu(layer(nn.relu(layer(nn.relu(conv(6)(x)))))))


def channel_shuffle(x):
    x = conv(8)(x)
    shuffled = x.reshape(*x.shape[:3], 2, 4).swapaxes(-1, -2).reshape(x.shape)
    return head(conv(6, 1)(shuffled))


def grouped_convolution(x):
    x = conv(12, feature_group_count=4)(nn.relu(conv(8)(x)))
    return head(conv(6, 1)(x))


def transposed_convolution(x):
    x = nn.ConvTranspose(5, (3, 3), (2, 2), transpose_kernel=True)(nn.relu(conv(6)(x)))
    return head(nn.ConvTranspose(4, (3, 3), (2, 2))(x))


def dense_connections(x):
    for _ in range(3):
        x = jnp.concatenate([x, nn.relu(conv(4)(x))], axis=-1)
    return nn.Dense(3)(nn.avg_pool(x, (2, 2), (2, 2)).max((1, 2)))


def statistics(x):
    x = nn.max_pool(conv(8)(x), (3, 3), (2, 2), "SAME")
    x = nn.avg_pool(conv(6)(x), (2, 2), (2, 2), "SAME", count_include_pad=False)
    return nn.Dense(3)(jnp.concatenate([x.mean((1, 2)), x.max((1, 2)), x.std((1, 2))], -1))


class Odd(nn.Module):
    """One of the functions above as a network."""

    layers: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x):
        return self.layers(x)


NETWORKS = (
    squeeze_and_excitation, spatial_attention, attention, gated_linear_unit, one_layer_twice,
    channel_shuffle, grouped_convolution, transposed_convolution, dense_connections, statistics,
)  # fmt: skip


@pytest.mark.exhaustive
@pytest.mark.parametrize("layers", NETWORKS, ids=lambda layers: layers.__name__)
def test_the_smaller_network_computes_what_the_masked_one_does(layers):
    network, rng = Network(Odd(layers)), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), SHAPE))
    variables = jax.tree.map(
        lambda leaf: (
            rng.uniform(0.1, 1, leaf.shape).astype(np.float32)
            * (1 if leaf.ndim < 2 else rng.choice([-1, 1], leaf.shape).astype(np.float32))
        ),
        shapes,
    )
    classifier = Classifier(variables, network)
    traced = shrinking.structure_of(network, variables, SHAPE)
    pairs = []
    for allocation in ("uniform", "global"):
        pruner = Pruner(allocation=allocation)
        mask = shrinking.channel_mask(traced, variables, 0.5, pruner)
        small = shrinking.shrink(classifier, mask, SHAPE, check=False)
        # Not one number of a removed channel is left.
        assert trees.size(small.params) == sum(masks.kept(classifier.params, mask).values())
        assert trees.size(small.params) < 0.8 * trees.size(classifier.params)
        pairs.append((classifier.with_params(masks.apply(classifier.params, mask)), small))
    images = jax.random.uniform(jax.random.key(1), (3, *SHAPE))
    with jax.default_matmul_precision("highest"):
        outputs = jax.jit(lambda x: [[one(x) for one in pair] for pair in pairs])(images)
    for expected, found in outputs:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
