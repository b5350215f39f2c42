"""Work is counted exactly, and as the compiler counts it."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import models
from prunejax.classifier import Classifier, Network
from prunejax.evaluation import work


def classifier_of(module, shape):
    network = Network(module)
    return Classifier(network.init(jax.random.key(0), shape), network)


class Valid(nn.Module):
    """Products only, and no padding, so that the compiler counts the same."""

    @nn.compact
    def __call__(self, x):
        conv = functools.partial(nn.Conv, padding="VALID", use_bias=False)
        x = conv(6, (3, 3))(x)
        x = conv(6, (3, 3), feature_group_count=6)(x)
        x = conv(8, (2, 2), strides=2)(x)
        return nn.Dense(5, use_bias=False)(x.reshape(len(x), -1))


def test_flops_are_those_of_the_formula_and_of_the_compiler():
    classifier = classifier_of(Valid(), (9, 9, 3))
    layers = {layer.path: layer for layer in work.count(classifier, (9, 9, 3))}
    # positions x kernel x inputs of a group x outputs, a multiplication and an addition each
    assert layers["Conv_0/kernel"].flops == 2 * 7 * 7 * 9 * 3 * 6
    assert layers["Conv_1/kernel"].flops == 2 * 5 * 5 * 9 * 1 * 6
    assert layers["Conv_2/kernel"].flops == 2 * 2 * 2 * 4 * 6 * 8
    assert layers["Dense_0/kernel"].flops == 2 * 32 * 5
    total = sum(layer.flops for layer in layers.values())

    run = jax.jit(classifier.apply_fn.module.apply)  # without the images' normalisation
    lowered = run.lower(classifier.variables, jnp.ones((1, 9, 9, 3)))
    assert lowered.cost_analysis()["flops"] == total


def products(module, variables, images):
    """By layer, the compiler's count of its products; padding is part of the images then."""

    @functools.cache
    def flops(function, *shapes):
        shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        return jax.jit(function).lower(*shapes).cost_analysis()["flops"]

    @functools.cache
    def convolution(strides, groups):
        return lambda x, kernel: jax.lax.conv_general_dilated(
            x,
            kernel,
            strides,
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    found = {}

    def note(call, args, kwargs, context):
        out = call(*args, **kwargs)
        layer = context.module
        if isinstance(layer, nn.Conv | nn.Dense):
            (x,) = args
            kernel = layer.variables["params"]["kernel"].shape
            if isinstance(layer, nn.Dense):
                count = flops(jnp.dot, x.shape, kernel)
            else:
                strides = tuple(np.broadcast_to(layer.strides or 1, 2).tolist())
                out_and_kernel = zip(out.shape[1:3], strides, kernel[:2], strict=True)
                sides = [(n - 1) * stride + k for n, stride, k in out_and_kernel]
                groups = layer.feature_group_count
                padded = (x.shape[0], *sides, x.shape[3])
                count = flops(convolution(strides, groups), padded, kernel)
            found["/".join((*layer.path, "kernel"))] = count
        return out

    with nn.intercept_methods(note):
        jax.eval_shape(module.apply, variables, images)
    return found


ALWAYS = ("lenet5", "resnet8", "mobilenet_v2")


@pytest.mark.parametrize(
    "name",
    [n if n in ALWAYS else pytest.param(n, marks=pytest.mark.exhaustive) for n in models.MODELS],
)
def test_layers_of_the_zoo_work_as_much_as_the_compiler_counts(name):
    network = Network(models.create(name, 10))
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), (32, 32, 3)))
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), variables)
    layers = work.count(Classifier(params, network), (32, 32, 3))
    expected = products(network.module, variables, jnp.zeros((1, 32, 32, 3)))
    assert {layer.path: layer.flops for layer in layers} == expected
    assert all(layer.effective_flops == layer.flops > 0 for layer in layers)


def test_a_weight_that_is_used_twice_costs_twice():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(4)
            return layer(nn.relu(layer(x)))

    (layer,) = work.count(classifier_of(Twice(), (4,)), (4,))
    assert layer.flops == 2 * 2 * 16


class Odd(nn.Module):
    """A function of images as a network."""

    layers: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x):
        return self.layers(x)


def layers_of(function, shape):
    classifier = classifier_of(Odd(function), shape)
    return classifier, {layer.path: layer for layer in work.count(classifier, shape)}


@pytest.mark.parametrize(("size", "stride"), [(2, 2), (3, 3), (3, 1)])
def test_a_transposed_convolution_does_not_multiply_the_zeros_between(size, stride):
    """Without overlap none reaches over the edge, and the compiler counts the same."""

    def transposed(x):
        sides, strides = (size, size), (stride, stride)
        padding = "VALID" if stride > 1 else [(0, 0), (0, 0)]
        return nn.ConvTranspose(4, sides, strides, padding=padding, use_bias=False)(x)

    classifier, layers = layers_of(transposed, (5, 5, 3))
    positions = 5 * 5 if stride > 1 else 3 * 3
    assert layers["ConvTranspose_0/kernel"].flops == 2 * positions * size**2 * 3 * 4
    run = jax.jit(classifier.apply_fn.module.apply)
    analysis = run.lower(classifier.variables, jnp.ones((1, 5, 5, 3))).cost_analysis()
    assert analysis["flops"] == layers["ConvTranspose_0/kernel"].flops


def test_layers_of_a_scan_cost_as_often_as_it_runs():
    class Cell(nn.Module):
        @nn.compact
        def __call__(self, carry, _):
            tied = self.param("tied", nn.initializers.normal(), (8, 8))
            x = nn.relu(nn.Dense(12)(carry)) @ jnp.ones((12, 8))
            return nn.Dense(8)(nn.relu(x @ tied)), 0

    def own(x):  # each round has weights of its own
        scan = nn.scan(Cell, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return scan()(x, None)[0]

    def shared(x):
        scan = nn.scan(Cell, variable_broadcast="params", split_rngs={"params": False}, length=3)
        return scan()(x, None)[0]

    for function in (own, shared):
        _, layers = layers_of(function, (8,))
        flops = {path.partition("/")[2]: layer.flops for path, layer in layers.items()}
        wanted = {"Dense_0/kernel": 8 * 12, "Dense_1/kernel": 8 * 8, "tied": 8 * 8}
        assert flops == {path: 2 * 3 * number for path, number in wanted.items()}


def test_weights_that_a_loop_carries_are_weights_still():
    def network(variables, x):
        def step(_, state):
            h, w = state
            return jnp.tanh(h @ w), w

        return jax.lax.fori_loop(0, 5, step, (x, variables["params"]["w"]))[0]

    classifier = Classifier({"params": {"w": np.eye(4, dtype=np.float32)}}, network)
    (layer,) = work.count(classifier, (4,))
    assert (layer.flops, layer.effective_flops) == (5 * 2 * 16, 5 * 2 * 4)


def test_what_is_made_of_a_weight_costs_what_the_weight_does():
    def normed(x):
        x = nn.WeightNorm(nn.Conv(4, (3, 3)))(x)
        return nn.Dense(2)(x.mean((1, 2)))

    classifier, layers = layers_of(normed, (6, 6, 3))
    assert layers["Conv_0/kernel"].flops == 2 * 36 * 27 * 4
    kernel = np.array(classifier.params["Conv_0"]["kernel"])
    kernel[..., :2, :] = 0  # a quotient of zero is zero
    params = {**classifier.params, "Conv_0": {**classifier.params["Conv_0"], "kernel": kernel}}
    pruned = work.count(classifier.with_params(params), (6, 6, 3))
    found = {layer.path: layer.effective_flops for layer in pruned}
    assert found["Conv_0/kernel"] == 2 * 36 * 9 * 4

    def network(variables, x):
        p = variables["params"]
        x = jax.image.resize(x, (len(x), 6), "linear")
        both = jnp.concatenate([p["a"], p["b"]], axis=1)
        centred = p["centred"] - p["centred"].mean(axis=0)
        return (x @ both) @ (centred / (centred.std(axis=0) + 1e-5))

    shapes = {"a": (6, 2), "b": (6, 4), "centred": (6, 3)}
    params = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    found = {x.path: x for x in work.count(Classifier({"params": params}, network), (3,))}
    assert {path: layer.flops for path, layer in found.items()} == {
        "a": 2 * 12, "b": 2 * 24, "centred": 2 * 18
    }  # fmt: skip
    # Of a difference, the zeros are no zeros.
    effective = {path: layer.effective_flops for path, layer in found.items()}
    assert effective == {"a": 0, "b": 0, "centred": 2 * 18}


def test_work_of_unknown_length_is_named():
    def network(variables, x):
        def step(state):
            return state @ variables["params"]["w"]

        return jax.lax.while_loop(lambda state: state.sum() < 9, step, x)

    def harmless(variables, x):
        x = x @ variables["params"]["w"]
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x + x.T @ x, x)

    variables = {"params": {"w": np.ones((1, 1), np.float32)}}
    with pytest.raises(ValueError, match=r"multiplies with \['params/w'\] inside of 'while'"):
        work.count(Classifier(variables, network), (1,))
    (layer,) = work.count(Classifier(variables, harmless), (1,))
    assert layer.flops == 2
