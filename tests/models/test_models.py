"""Networks: sizes in closed form, published weights with their published accuracy, layers."""

import gzip
import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import Classifier, Network, models, trees
from prunejax.models import layers

SHARED = pathlib.Path(__file__).parents[2] / "../shared"
PUBLISHED = SHARED / "reference_models/fashion_mnist_linf_0.1.npz"
FASHION_MNIST = SHARED / "data/fashion_mnist"


def shapes(module, image_shape):
    """Shapes of all the variables, without computing any."""
    init = lambda key: Network(module).init(key, image_shape)  # noqa: E731
    return jax.eval_shape(init, jax.random.key(0))


def weights(variables):
    params = trees.flatten(variables["params"])
    return sum(params[path].size for path in trees.prunable(variables["params"]))


def published():
    if not PUBLISHED.exists():
        pytest.skip(f"{PUBLISHED.name} of the published networks is not here")
    with np.load(PUBLISHED) as file:
        return dict(file)


# -- sizes -----------------------------------------------------------------------------------------


def test_mlp_is_300_100():
    params = shapes(models.create("mlp", 10), (28, 28, 1))["params"]
    # 784 * 300 + 300 * 100 + 100 * 10
    assert weights({"params": params}) == 266_200


def test_lenet5_by_hand():
    params = shapes(models.create("lenet5", 10), (28, 28, 1))["params"]
    assert {path: leaf.shape for path, leaf in trees.flatten(params).items()} == {
        "Conv_0/kernel": (5, 5, 1, 32),
        "Conv_0/bias": (32,),
        "Conv_1/kernel": (5, 5, 32, 64),
        "Conv_1/bias": (64,),
        "Dense_0/kernel": (7 * 7 * 64, 84),
        "Dense_0/bias": (84,),
        "Dense_1/kernel": (84, 10),
        "Dense_1/bias": (10,),
    }


def resnet_weights(width, depths, channels, classes):
    """3x3 convolutions of the stem and the blocks, 1x1 shortcuts, the last layer."""
    total, before = 9 * channels * width, width
    for stage, depth in enumerate(depths):
        after = width * 2**stage
        total += 9 * before * after + (2 * depth - 1) * 9 * after**2
        total += before * after if before != after else 0
        before = after
    return total + before * classes


def test_resnet18_has_the_size_of_the_literature():
    variables = shapes(models.create("resnet18", 10), (32, 32, 3))
    assert weights(variables) == 11_164_352 == resnet_weights(64, (2, 2, 2, 2), 3, 10)
    assert len(trees.prunable(variables["params"])) == 21  # 17 and 3 shortcuts, and the last layer


@pytest.mark.parametrize(("width", "classes"), [(16, 10), (4, 3)])
def test_resnet8_in_closed_form(width, classes):
    variables = shapes(models.create("resnet8", classes, width=width), (32, 32, 3))
    assert weights(variables) == resnet_weights(width, (1, 1, 1), 3, classes)


def test_resnets_halve_the_resolution_after_the_first_stage():
    # Features before pooling, read off a network whose pooled means are of known inputs.
    module = models.create("resnet18", 2, width=1)
    seen = {}

    def note(next_function, args, kwargs, context):
        out = next_function(*args, **kwargs)
        if isinstance(context.module, nn.Conv):
            seen["/".join(context.module.path)] = out.shape[1:]
        return out

    with nn.intercept_methods(note):
        shapes(module, (32, 32, 3))
    resolution = {2 * i + j: shape for i in range(4) for j in (0, 1) for shape in [2**-i * 32]}
    for block, side in resolution.items():
        stage = block // 2
        assert seen[f"BasicBlock_{block}/Conv_1"] == (side, side, 2**stage)


# -- values ----------------------------------------------------------------------------------------


def test_strided_cnn_is_the_published_network():
    arrays = published()
    params = trees.flatten(shapes(models.create("strided_cnn", 10), (28, 28, 1))["params"])
    assert {k: v.shape for k, v in params.items()} == {k: v.shape for k, v in arrays.items()}


def test_published_weights_score_what_was_published():
    arrays = published()
    if not FASHION_MNIST.exists():
        pytest.skip("the images of Fashion-MNIST are not here")
    images = _idx(FASHION_MNIST / "t10k-images-idx3-ubyte.gz")[:1000, ..., None]
    labels = _idx(FASHION_MNIST / "t10k-labels-idx1-ubyte.gz")[:1000]
    network = Network(models.create("strided_cnn", 10))
    template = shapes(network.module, (28, 28, 1))["params"]
    classifier = Classifier({"params": trees.unflatten(template, arrays)}, network)
    logits = jax.jit(Classifier.__call__)(classifier, jnp.asarray(images, jnp.float32) / 255)
    assert int(np.sum(np.argmax(logits, -1) == labels)) == 793


def _idx(path):
    data = gzip.decompress(path.read_bytes())
    rank = data[3]
    shape = np.frombuffer(data, ">i4", rank, offset=4)
    assert data[:3] == b"\0\0\x08"  # unsigned bytes
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def test_mlp_computes_its_formula():
    network = Network(models.create("mlp", 3, widths=[4]), mean=0.5, std=(2.0,))
    variables = network.init(jax.random.key(1), (2, 3, 1))
    images = jax.random.uniform(jax.random.key(2), (5, 2, 3, 1))
    p = trees.flatten(jax.tree.map(np.asarray, variables["params"]))
    x = ((np.asarray(images) - 0.5) / 2).reshape(5, 6)
    hidden = np.maximum(x @ p["Dense_0/kernel"] + p["Dense_0/bias"], 0)
    expected = hidden @ p["Dense_1/kernel"] + p["Dense_1/bias"]
    np.testing.assert_allclose(network(variables, images), expected, rtol=1e-5, atol=1e-6)


def test_normalisation_is_by_channel():
    module = models.create("mlp", 2, widths=())
    network = Network(module, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))
    variables = network.init(jax.random.key(0), (2, 2, 3))
    images = jax.random.uniform(jax.random.key(1), (4, 2, 2, 3))
    normalised = (np.asarray(images) - [0.1, 0.2, 0.3]) / [1.0, 2.0, 4.0]
    expected = Network(module)(variables, jnp.asarray(normalised, jnp.float32))
    np.testing.assert_allclose(network(variables, images), expected, rtol=1e-5, atol=1e-6)


# -- training and evaluation mode ------------------------------------------------------------------


@pytest.fixture(scope="module")
def batch_norm():
    """A ResNet of one block and one channel, and images far from mean 0 and variance 1."""
    network = Network(models.create("resnet8", 2, width=1, depths=[1]))
    images = 3 + 2 * jax.random.normal(jax.random.key(5), (6, 8, 8, 1))
    return network, network.init(jax.random.key(0), (8, 8, 1)), images


def test_training_moves_the_statistics_by_a_tenth_towards_those_of_the_batch(batch_norm):
    network, variables, images = batch_norm
    _, collections = jax.jit(network.train)(variables, images)
    assert set(collections) == {"batch_stats"}
    assert jax.tree.structure(collections["batch_stats"]) == jax.tree.structure(
        variables["batch_stats"]
    )
    kernel = variables["params"]["Conv_0"]["kernel"]
    stem = nn.Conv(1, (3, 3), padding=1, use_bias=False).apply(
        {"params": {"kernel": kernel}}, images
    )
    moved = collections["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(moved["mean"], [0.1 * np.mean(stem)], rtol=1e-4)
    np.testing.assert_allclose(moved["var"], [0.9 + 0.1 * np.var(stem)], rtol=1e-4)


def test_evaluation_uses_the_statistics_and_each_example_alone(batch_norm):
    network, variables, images = batch_norm
    evaluate = jax.jit(network.__call__)
    logits = evaluate(variables, images)
    alone = jnp.concatenate([evaluate(variables, image[None]) for image in images])
    np.testing.assert_allclose(logits, alone, rtol=1e-4, atol=1e-5)

    trained, collections = jax.jit(network.train)(variables, images)
    assert not np.allclose(trained, logits, rtol=1e-2)  # the batch's own statistics
    after = evaluate({**variables, **collections}, images)
    assert not np.allclose(after, logits, rtol=1e-3)


def test_training_mode_makes_batch_norm_blind_to_scale(batch_norm):
    # In training mode the stem's normalisation undoes a + b x; in evaluation mode nothing does.
    network, variables, images = batch_norm
    train = jax.jit(network.train)
    interior = jnp.pad(images[:, 1:-1, 1:-1], ((0, 0), (1, 1), (1, 1), (0, 0)))
    once, _ = train(variables, interior)
    ten_times, _ = train(variables, 10 * interior)
    np.testing.assert_allclose(once, ten_times, rtol=1e-3, atol=1e-4)


def test_without_batch_norm_both_modes_agree_and_nothing_is_moved():
    network = Network(models.create("mlp", 3, widths=[4]))
    variables = network.init(jax.random.key(0), (2, 2, 1))
    images = jax.random.uniform(jax.random.key(1), (5, 2, 2, 1))
    logits, collections = network.train(variables, images)
    assert not collections
    np.testing.assert_array_equal(logits, network(variables, images))


# -- layers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (2, 7, 3, 1)])
def test_max_pool_is_that_of_flax_in_value_and_gradient(shape):
    # A permutation has no ties, with which gradients are one choice among many.
    x = jax.random.permutation(jax.random.key(0), math.prod(shape)).reshape(shape).astype(float)
    reference = lambda x: nn.max_pool(x, (2, 2), strides=(2, 2))  # noqa: E731

    @jax.jit
    def both_of(x):
        out, vjp = jax.vjp(layers.max_pool_2x2, x)
        expected, expected_vjp = jax.vjp(reference, x)
        cotangent = jnp.arange(1.0, out.size + 1).reshape(out.shape)
        return (out, *vjp(cotangent)), (expected, *expected_vjp(cotangent))

    jax.tree.map(np.testing.assert_array_equal, *both_of(x))


def test_a_tie_splits_the_gradient_and_loses_none_of_it():
    grad = jax.grad(lambda x: layers.max_pool_2x2(x).sum())(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(grad, np.full((1, 2, 2, 1), 0.25))


def test_flatten_has_the_order_height_width_channel():
    x = np.arange(24).reshape(2, 2, 3, 2)
    expected = [
        [x[b, h, w, c] for h in range(2) for w in range(3) for c in range(2)] for b in (0, 1)
    ]
    np.testing.assert_array_equal(layers.flatten(jnp.asarray(x)), expected)


# -- names and options -----------------------------------------------------------------------------


def test_unknown_networks_and_options_name_the_nearest():
    with pytest.raises(ValueError, match=r"Unknown network 'resnet-18'. Did you mean 'resnet18'\?"):
        models.create("resnet-18", 10)
    with pytest.raises(ValueError, match=r"network 'resnet8' 'widht'. Did you mean 'width'\?"):
        models.create("resnet8", 10, widht=4)
    with pytest.raises(ValueError, match="network 'mlp' 'parent'"):
        models.create("mlp", 10, parent=None)


@pytest.mark.parametrize("number", [1, 0, -3])
def test_a_classifier_needs_two_classes(number):
    with pytest.raises(ValueError, match=f"num_classes is {number}"):
        models.create("mlp", number)


def test_equal_options_make_equal_networks_lists_too():
    assert models.create("mlp", 5, widths=[3, 4]) == models.create("mlp", 5, widths=(3, 4))
    assert hash(Network(models.create("lenet5", 5, widths=[1, 2, 3]), mean=(0.1,))) == hash(
        Network(models.create("lenet5", 5, widths=(1, 2, 3)), mean=(0.1,))
    )
