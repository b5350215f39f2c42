"""What the larger networks' blocks compute, on numbers where it can be told."""

import functools
import itertools

import jax
import numpy as np
import pytest

from prunejax import trees
from prunejax.models import mobilenet, resnet, wide_resnet


def initialised(block, shape):
    """Random kernels and input, and what norms divide by: their other numbers are 0 and 1."""
    random = np.random.default_rng(0)
    x = 3 * random.normal(size=shape).astype(np.float32)
    variables = jax.eval_shape(functools.partial(block.init, train=False), jax.random.key(0), x)

    def value(path, leaf):
        if path.endswith("kernel"):
            return random.normal(size=leaf.shape).astype(np.float32)
        return np.full(leaf.shape, path.endswith(("scale", "var")), np.float32)

    return trees.map_with_path(value, variables), x, np.sqrt(np.float32(1 + 1e-5))


def evaluate(block, variables, x):
    return jax.jit(lambda variables, x: block.apply(variables, x, train=False))(variables, x)


def without(variables, layer):
    """The variables with a convolution of zeros."""
    zeros = np.zeros_like(variables["params"][layer]["kernel"])
    return {**variables, "params": {**variables["params"], layer: {"kernel": zeros}}}


def test_a_wide_block_without_its_last_convolution_is_its_shortcut():
    block = wide_resnet.WideBlock(features=3, inner=(2,), strides=1, project=False)
    variables, x, _ = initialised(block, (2, 4, 5, 3))
    out = evaluate(block, without(variables, "Conv_1"), x)
    np.testing.assert_array_equal(out, x)  # no ReLU behind the sum


def test_a_projected_wide_shortcut_reads_the_normalised_input():
    block = wide_resnet.WideBlock(features=4, inner=(2,), strides=2, project=True)
    variables, x, std = initialised(block, (2, 4, 5, 3))
    out = evaluate(block, without(variables, "Conv_1"), x)
    kernel = variables["params"]["shortcut"]["kernel"][0, 0]
    expected = np.maximum(x / std, 0)[:, ::2, ::2] @ kernel
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [resnet.BasicBlock, resnet.Bottleneck])
def test_other_blocks_without_their_last_convolution_are_the_relu_of_their_shortcut(kind):
    last = f"Conv_{kind.convs - 1}"
    block = kind(features=3, inner=(2,) * (kind.convs - 1), strides=1, project=False)
    variables, x, _ = initialised(block, (2, 4, 5, 3))
    out = evaluate(block, without(variables, last), x)
    np.testing.assert_array_equal(out, np.maximum(x, 0))


@pytest.mark.parametrize("kind", [resnet.BasicBlock, resnet.Bottleneck, wide_resnet.WideBlock])
@pytest.mark.parametrize("strides", [1, 2])
def test_without_projection_other_shapes_are_fewer_pixels_and_more_zeros(kind, strides):
    block = kind(features=5, inner=(2,) * (kind.convs - 1), strides=strides, project=False)
    variables, x, _ = initialised(block, (2, 4, 5, 3))
    out = evaluate(block, without(variables, f"Conv_{kind.convs - 1}"), x)
    shortcut = x if kind.pre_activation else np.maximum(x, 0)
    np.testing.assert_array_equal(out[..., :3], shortcut[:, ::strides, ::strides])
    np.testing.assert_array_equal(out[..., 3:], 0)


@pytest.mark.parametrize(("strides", "residual"), [(2, False), (1, True)])
def test_an_inverted_residual_correlates_each_channel_alone(strides, residual):
    block = mobilenet.InvertedResidual(3, None, strides, residual)
    variables, x, std = initialised(block, (2, 5, 4, 3))
    identity = {"kernel": np.eye(3, dtype=np.float32)[None, None]}
    params = {**variables["params"], "project": identity}
    out = evaluate(block, {**variables, "params": params}, x)

    kernel = params["depthwise"]["kernel"][:, :, 0]  # [3, 3, channels]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = itertools.product(range(3), range(3))
    maps = sum(padded[:, i : i + 5, j : j + 4] * kernel[i, j] for i, j in shifts)
    maps = maps[:, ::strides, ::strides]
    assert np.any(maps > 6)  # where ReLU6 is not ReLU
    expected = np.clip(maps / std, 0, 6) / std + (x if residual else 0)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


def test_the_imagenet_stem_pools_around_every_second_pixel_of_its_convolution():
    module = resnet.ResNet(num_classes=2, depths=(0,), width=1, stem="imagenet")
    variables, x, std = initialised(module, (1, 16, 16, 1))
    centre = np.zeros((7, 7, 1, 1), np.float32)
    centre[3, 3] = 1
    params = {**variables["params"], "Conv_0": {"kernel": centre}}
    out = evaluate(module, {**variables, "params": params}, x)

    maps = np.pad(np.maximum(x[0, ::2, ::2, 0] / std, 0), 1)  # [10, 10]; below 0 is nothing
    pooled = [maps[i : i + 3, j : j + 3].max() for i in range(0, 8, 2) for j in range(0, 8, 2)]
    np.testing.assert_allclose(out[0], np.mean(pooled) * params["Dense_0"]["kernel"][0], rtol=1e-5)
