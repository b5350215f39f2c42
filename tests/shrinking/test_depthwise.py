"""Channels that pass through depthwise filters go where nothing of them is left to be read."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import masks, shrinking, trees
from prunejax.classifier import Classifier

SHAPE = (4, 4, 2)
WIDTH = 6
RNG = np.random.default_rng(0)


def chain(expand, filters, others, project):
    """A depthwise filter between two layers."""
    return project(filters(expand))


def twice(expand, filters, others, project):
    """Two of them in a row."""
    return project(others(filters(expand)))


def residual(expand, filters, others, project):
    """What it makes is added to what it reads."""
    return project(expand + filters(expand))


def branches(expand, filters, others, project):
    """Two read the same."""
    return project(filters(expand) + others(expand))


def again(expand, filters, others, project):
    """The same filters twice."""
    return project(filters(filters(expand)))


def read_before(expand, filters, others, project):
    """Another layer reads what the depthwise filters read, as a sum of both would."""
    return project(jnp.concatenate([expand, filters(expand)], axis=-1))


class Net(nn.Module):
    """Without biases, so that what reads zeros makes zeros."""

    wiring: str

    @nn.compact
    def __call__(self, x):
        def layer(features, name, groups=1):
            conv = nn.Conv(features, (3, 3), feature_group_count=groups, use_bias=False, name=name)
            return lambda x: nn.relu(conv(x))

        x = layer(WIDTH, "expand")(x)
        filters, others = (layer(WIDTH, name, WIDTH) for name in ("filters", "others"))
        x = WIRINGS[self.wiring](x, filters, others, layer(3, "project"))
        return nn.Dense(3)(x.mean(axis=(1, 2)))


WIRINGS = {
    wiring.__name__: wiring for wiring in (chain, twice, residual, branches, again, read_before)
}


@pytest.mark.parametrize("wiring", WIRINGS)
def test_what_goes_is_what_no_reader_misses(wiring):
    """A channel can go where zeros in all that makes it, of any weights, change no output."""
    net = Net(wiring)
    images = jax.random.uniform(jax.random.key(1), (2, *SHAPE))
    variables = net.init(jax.random.key(0), images)
    params = jax.tree.map(jnp.abs, variables["params"])  # no sums that are zero by chance, no ReLU
    apply = jax.jit(lambda params: net.apply({"params": params}, images))
    makers = [name for name in ("expand", "filters", "others") if name in params]
    for _ in range(4):
        left = {name: RNG.uniform(size=WIDTH) < 0.6 for name in makers}
        left = {name: own | (np.arange(WIDTH) == 5) for name, own in left.items()}
        mask = masks.dense(params)
        for name, own in left.items():
            mask[name] = {"kernel": jnp.asarray(own.reshape(1, 1, 1, -1))}
        masked = masks.apply(params, mask)
        expected = apply(masked)
        gone = []
        for channel in range(WIDTH):
            without = dict(masked)
            for name in makers:
                without[name] = {"kernel": masked[name]["kernel"].at[..., channel].set(0)}
            if np.array_equal(apply(without), expected):
                gone.append(channel)
        small = shrinking.shrink(Classifier({"params": params}, net.apply), mask, SHAPE)
        np.testing.assert_allclose(small(images), expected, rtol=1e-5)
        assert small.params["expand"]["kernel"].shape[-1] == WIDTH - len(gone)
        assert trees.size(small.params) < trees.size(params) or not gone
