"""Smaller networks have the derivatives of the whole ones, also those that networks define."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import masks, shrinking
from prunejax.classifier import Classifier

SHAPE = (6, 6, 2)


@jax.custom_vjp
def straight_through(x):
    return jnp.sign(x)


straight_through.defvjp(
    lambda x: (jnp.sign(x), x), lambda x, g: (jnp.where(jnp.abs(x) <= 1, g, 0.0),)
)


@jax.custom_jvp
def steeper(x):
    return jnp.tanh(x)


steeper.defjvp(lambda primals, tangents: (jnp.tanh(primals[0]), 3 * tangents[0]))


@jax.custom_vjp
def scaled(x):
    """Not elementwise: the channels that it compares cannot go."""
    return x / (1 + jnp.abs(x).sum(axis=-1, keepdims=True))


scaled.defvjp(lambda x: (x / (1 + jnp.abs(x).sum(axis=-1, keepdims=True)), x), lambda x, g: (g,))


@jax.custom_jvp
def passing(x):
    """Computes a ReLU, and is none."""
    return jnp.maximum(x, 0)


passing.defjvps(lambda tangent, _, x: tangent)


@jax.custom_jvp
def chosen(x):
    """Holds a number that is spread over all places."""
    return jnp.where(x > 0.1, x, 0.0)


chosen.defjvps(lambda tangent, _, x: 2 * tangent)


@jax.custom_vjp
def _with_mean(x, mean):
    return x + mean[:, None, None], jnp.tanh(mean)


_with_mean.defvjp(lambda x, mean: (_with_mean(x, mean), None), lambda _, g: (g[0], 2 * g[1]))


def of_two_shapes(x):
    """Elementwise in both results, but not in one shape."""
    return _with_mean(x, x.mean(axis=(1, 2)))[0]


@jax.custom_jvp
def quantised(x, scale):
    """Straight through, with a scale a channel: a custom_jvp that is not elementwise."""
    return jnp.round(x / scale) * scale


quantised.defjvps(lambda tangent, *_: tangent, None)

ACTIVATIONS = {
    "chosen": chosen,
    "quantised": lambda x: quantised(x, jnp.linspace(0.1, 0.2, x.shape[-1])),
    "passing": passing,
    "of_two_shapes": of_two_shapes,
    "straight_through": straight_through,
    "steeper": steeper,
    "relu": nn.relu,
    "maximum": lambda x: jnp.maximum(x, 0.0),
    "relu6": nn.relu6,
    "softplus": nn.softplus,
    "silu": nn.silu,
}


class Net(nn.Module):
    """A convolution, a residual block and a dense layer, without biases: zeros stay zeros."""

    activation: str

    @nn.compact
    def __call__(self, x):
        activation = ACTIVATIONS[self.activation]
        x = activation(nn.Conv(6, (3, 3), use_bias=False)(x))
        x = x + Branch(self.activation)(x)
        return nn.Dense(3)(scaled(nn.Dense(4)(x.mean(axis=(1, 2)))))


class Branch(nn.Module):
    activation: str

    @nn.compact
    def __call__(self, x):
        x = ACTIVATIONS[self.activation](nn.Conv(6, (3, 3), use_bias=False)(x))
        return nn.Conv(6, (3, 3), use_bias=False)(x)


MIXING = ("of_two_shapes", "quantised")


@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a not in MIXING])
def test_the_gradient_is_that_of_the_whole_network_also_at_kinks_and_by_own_rules(activation):
    net = Net(activation)
    # In the first image most sums are exactly zero, where maximum and ReLU have other derivatives.
    images = jax.random.uniform(jax.random.key(1), (2, *SHAPE)).at[0, 1:].set(0)
    variables = net.init(jax.random.key(0), images)
    classifier = Classifier(variables, net.apply)
    traced = shrinking.structure_of(net.apply, variables, SHAPE)
    mask = shrinking.channel_mask(traced, variables, 0.5)
    smaller = shrinking.shrink(classifier, mask, SHAPE, carry=True)
    without = shrinking.remove_blocks(classifier, ["Branch_0"], SHAPE)
    carried = masks.apply(variables["params"], shrinking.carried(classifier, mask, SHAPE))
    zeros = {"Branch_0": jax.tree.map(jnp.zeros_like, variables["params"]["Branch_0"])}

    def gradient(params, apply_fn):
        logits = jax.nn.log_softmax
        return jax.grad(lambda x: logits(apply_fn({"params": params}, x))[:, 0].sum())(images)

    for expected, found in (
        (gradient(carried, net.apply), gradient(smaller.params, smaller.apply_fn)),
        (
            gradient(variables["params"] | zeros, net.apply),
            gradient(without.params, without.apply_fn),
        ),
    ):
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    kernels = smaller.params["Conv_0"]["kernel"], smaller.params["Branch_0"]["Conv_0"]["kernel"]
    assert sum(kernel.shape[-1] for kernel in kernels) == 6
    assert smaller.params["Dense_1"]["kernel"].shape[1] == 4  # what is compared stays


@pytest.mark.parametrize(
    ("activation", "derivative"),
    [("relu6", True), ("softplus", True), ("steeper", False), ("straight_through", False)],
)
def test_activations_see_the_channels_alone_that_are_left(activation, derivative):
    net, images = Net(activation), jnp.zeros((2, *SHAPE))
    variables = net.init(jax.random.key(0), images)
    mask = shrinking.channel_mask(
        shrinking.structure_of(net.apply, variables, SHAPE), variables, 0.5
    )
    small = shrinking.shrink(Classifier(variables, net.apply), mask, SHAPE, check=False)

    def gradient(images):
        return jax.grad(lambda x: small(x)[:, 0].sum())(images)

    for function in (small, gradient) if derivative else (small,):
        program = str(jax.make_jaxpr(lambda x, function=function: function(x))(images))
        assert "[2,6,6,3]" in program
        assert "scatter" not in program


@pytest.mark.parametrize("activation", MIXING)
def test_channels_of_calls_with_a_rule_that_is_not_elementwise_stay(activation):
    net = Net(activation)
    images = jax.random.uniform(jax.random.key(1), (2, *SHAPE))
    variables = net.init(jax.random.key(0), images)
    traced = shrinking.structure_of(net.apply, variables, SHAPE)
    with pytest.raises(ValueError, match=r"must stay, what 'custom_.*call' does to them is not"):
        shrinking.channel_mask(traced, variables, 0.5)
    whole = shrinking.whole(net.apply, variables)
    expected, found = (
        jax.grad(lambda x, network=network: network(variables, x)[:, 0].sum())(images)
        for network in (net.apply, whole)
    )
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
