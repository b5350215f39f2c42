"""Criteria that look at data: maps and scores of hand-made networks, worked out by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import models, trees
from prunejax.models.resnet import BasicBlock
from prunejax.pruning import activations
from prunejax.pruning.activations import layers

RNG = np.random.default_rng(0)


def conv(images, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=numbers)


def dense_after(features):
    """A last layer that reads the sum over positions of whatever `features` computes."""

    def apply_fn(variables, images):
        return features(variables["params"], images).sum((1, 2)) @ variables["params"]["last"]

    return apply_fn


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def randomised(variables):
    """Every leaf random, statistics too; positive, where a variance has to be."""
    return trees.map_with_path(
        lambda path, x: np.abs(normal(*x.shape)) + 0.5 if "var" in path else normal(*x.shape),
        variables,
    )


# -- maps ------------------------------------------------------------------------------------------


def test_maps_of_a_residual_block_are_what_its_relus_give():
    block = BasicBlock(features=6, inner=(5,), strides=2, project=True)
    images = normal(3, 8, 8, 4)
    variables = randomised(jax.eval_shape(lambda: block.init(jax.random.key(0), images, False)))
    output, state = block.apply(variables, images, False, capture_intermediates=True)
    inside = state["intermediates"]["BatchNorm_0"]["__call__"][0]
    added = (
        state["intermediates"]["BatchNorm_1"]["__call__"][0]
        + state["intermediates"]["shortcut_norm"]["__call__"][0]
    )
    np.testing.assert_allclose(output, nn.relu(added), rtol=1e-6)
    apply_fn = lambda variables, images: block.apply(variables, images, False)  # noqa: E731

    maps = activations.feature_maps(apply_fn, variables, images)

    assert maps.keys() == {"Conv_0/kernel", "Conv_1/kernel", "shortcut/kernel"}
    np.testing.assert_allclose(maps["Conv_0/kernel"], nn.relu(inside), rtol=1e-5, atol=1e-5)
    for path in ("Conv_1/kernel", "shortcut/kernel"):
        np.testing.assert_allclose(maps[path], output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("behind", "expected"),
    [
        (nn.relu, nn.relu),
        (nn.relu6, nn.relu6),
        (nn.silu, nn.silu),
        (nn.tanh, nn.tanh),
        (lambda x: 2 * x + 1, lambda x: 2 * x + 1),
        # Pooling comes before the ReLU: what is pooled is the map.
        (lambda x: nn.relu(nn.max_pool(x - 1, (2, 2), (2, 2))), lambda x: x - 1),
        # The ReLU's own map, not what is made of it.
        (lambda x: jnp.tanh(nn.relu(x)) * 3, nn.relu),
    ],
)
def test_map_is_what_leaves_the_next_relu(behind, expected):
    params = {"first": 3 * normal(1, 1, 2, 3), "last": normal(3, 2)}
    images = normal(2, 4, 4, 2)
    apply_fn = dense_after(lambda params, images: behind(conv(images, params["first"])))
    maps = activations.feature_maps(apply_fn, {"params": params}, images)
    by_hand = expected(jnp.einsum("nhwi,io->nhwo", images, params["first"][0, 0]))
    np.testing.assert_allclose(maps["first"], by_hand, rtol=1e-5, atol=1e-5)


def test_maps_of_dense_layers_are_their_units():
    network = models.create("mlp", 3, widths=(4,))
    images = normal(5, 2, 2, 1)
    variables = randomised(jax.eval_shape(network.init, jax.random.key(0), images))
    params = variables["params"]
    maps = activations.feature_maps(network.apply, variables, images)
    hidden = nn.relu(images.reshape(5, 4) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])
    np.testing.assert_allclose(maps["Dense_0/kernel"], hidden, rtol=1e-5, atol=1e-6)
    logits = network.apply(variables, images)
    np.testing.assert_allclose(maps["Dense_1/kernel"], logits, rtol=1e-5, atol=1e-6)


def test_kernels_in_another_layout_that_are_cast_and_scaled():
    """Channels first, kernels OIHW as PyTorch has them: maps and scores follow the layout."""
    params = {"first": normal(3, 2, 1, 1), "last": normal(3, 2)}
    images = normal(2, 2, 4, 4)

    def apply_fn(variables, images):
        kernel = 2 * variables["params"]["first"].astype(jnp.float32)
        maps = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME")
        return nn.relu(maps).sum((2, 3)) @ variables["params"]["last"]

    by_hand = nn.relu(2 * np.einsum("nihw,oi->nhwo", images, params["first"][:, :, 0, 0]))
    maps = activations.feature_maps(apply_fn, {"params": params}, images)
    np.testing.assert_allclose(maps["first"], by_hand, rtol=1e-5, atol=1e-6)
    scores = activations.expected_abs(apply_fn, {"params": params}, images)
    assert scores["first"].shape == (3, 1, 1, 1)
    np.testing.assert_allclose(scores["first"].ravel(), by_hand.mean((0, 1, 2)), rtol=1e-5)


# -- scores of maps --------------------------------------------------------------------------------


def three_filters(params, images):
    return nn.relu(conv(images, params["first"]))


def test_expected_abs_by_hand_and_whatever_the_batch():
    # Filters x, -x and 2x of images of one channel: means of max(x, 0), max(-x, 0), max(2x, 0).
    images = np.zeros((5, 2, 2, 1), np.float32)
    images[0, 0, 0], images[1, 0, 1], images[4, 1, 1] = 3, -1, 5
    params = {"first": np.array([1, -1, 2], np.float32).reshape(1, 1, 1, 3), "last": normal(3, 2)}
    apply_fn = dense_after(three_filters)
    for batch_size in (2, 5, 100):
        scores = activations.expected_abs(
            apply_fn, {"params": params}, images, batch_size=batch_size
        )
        np.testing.assert_allclose(scores["first"], [[[[8 / 20, 1 / 20, 16 / 20]]]], rtol=1e-6)
        assert scores["last"].shape == ()


def test_hrank_is_the_mean_rank():
    # Channels: an outer product (rank 1 where not zero), and a diagonal (as many as are not zero).
    images = np.zeros((2, 4, 4, 2), np.float32)
    images[0, :, :, 0] = np.outer([1, 2, 3, 4], [1, 1, 2, 5])
    images[:, :, :, 1] = [np.diag([1, 2, 3, 4]), np.diag([1, 0, 3, 0])]
    kernel = np.array([[1, 0, 0], [0, 1, 0]], np.float32).reshape(1, 1, 2, 3)
    params = {"first": kernel, "last": normal(3, 2)}
    scores = activations.hrank(dense_after(three_filters), {"params": params}, images)
    np.testing.assert_array_equal(scores["first"], [[[[(1 + 0) / 2, (4 + 2) / 2, 0]]]])


def test_hrank_of_dense_units_is_how_often_they_are_active():
    params = {"first": np.array([[1, -1, 0]], np.float32), "last": normal(3, 2)}

    def apply_fn(variables, images):
        hidden = nn.relu(images @ variables["params"]["first"])
        return hidden @ variables["params"]["last"]

    images = np.array([[1], [2], [3], [-4]], np.float32)
    scores = activations.hrank(apply_fn, {"params": params}, images)
    np.testing.assert_array_equal(scores["first"], [[3 / 4, 1 / 4, 0]])


def two_convolutions(params, images):
    return nn.relu(conv(nn.relu(conv(images, params["first"])), params["second"]))


def vip_by_hand(features, labels):
    """Two components: each weight the leading singular vector of X'Y, X and Y then deflated."""
    x = features.astype(np.float64)
    x = (x - x.mean(0)) / x.std(0, ddof=1)
    y = np.eye(labels.max() + 1)[labels]
    y = (y - y.mean(0)) / y.std(0, ddof=1)
    total, weighted = 0.0, np.zeros(x.shape[1])
    for _ in range(2):
        w = np.linalg.svd(x.T @ y)[0][:, 0]
        t = x @ w
        q = y.T @ t / (t @ t)
        explained = (t @ t) * (q @ q)
        total, weighted = total + explained, weighted + explained * w**2
        x = x - np.outer(t, x.T @ t / (t @ t))
        y = y - np.outer(t, q)
    return np.sqrt(x.shape[1] * weighted / total)


def test_pls_vip_agrees_with_the_singular_vectors_and_its_squares_sum_to_p():
    params = {"first": normal(3, 3, 1, 4), "second": normal(1, 1, 4, 5), "last": normal(5, 3)}
    images, labels = normal(40, 4, 4, 1), RNG.integers(0, 3, 40)
    images[labels == 1, :2] += 1
    params["second"][..., 0] *= -np.sign(params["second"][..., 0])  # its ReLU lets nothing pass
    apply_fn = dense_after(two_convolutions)

    scores = activations.pls_vip(apply_fn, {"params": params}, images, labels, batch_size=16)

    first = conv(images, params["first"])
    second = conv(nn.relu(first), params["second"])
    pooled = np.concatenate([maps.max((1, 2)) for maps in (first, second)], axis=1)
    found = np.concatenate([scores["first"].ravel(), scores["second"].ravel()])
    np.testing.assert_allclose(found, vip_by_hand(pooled, labels), rtol=1e-3)
    np.testing.assert_allclose(np.sum(found**2), 9, rtol=1e-6)
    assert scores["first"].shape == (1, 1, 1, 4)
    assert scores["last"].shape == ()


def test_pls_vip_finds_the_one_channel_that_tells_the_classes_apart():
    images, labels = 0.1 * normal(60, 2, 2, 3) + 5, np.arange(60) % 2
    images[:, :, :, 1] += labels[:, None, None]
    params = {"first": np.eye(3, dtype=np.float32)[None, None], "last": normal(3, 2)}
    apply_fn = dense_after(three_filters)
    scores = activations.pls_vip(apply_fn, {"params": params}, images, labels)
    assert np.argmax(scores["first"]) == 1
    # A dead filter tells nothing: its column is constant.
    dead = {**params, "first": params["first"] * np.array([1, 1, 0], np.float32)}
    assert activations.pls_vip(apply_fn, {"params": dead}, images, labels)["first"].ravel()[2] == 0


def test_pls_vip_is_zero_for_filters_that_add_nothing_to_a_residual_sum():
    images, labels = np.random.default_rng(1).uniform(size=(30, 4, 4, 3)), np.arange(30) % 2
    images[labels == 1] += 1
    identity = np.eye(3, dtype=np.float32)[None, None]
    params = {"first": identity, "second": identity * np.array([0, 2, 0], np.float32)}

    def residual(params, images):
        x = nn.relu(conv(images, params["first"]))
        return nn.relu(x + conv(x, params["second"]))

    apply_fn, params = dense_after(residual), {**params, "last": np.ones((3, 2), np.float32)}
    scores = activations.pls_vip(apply_fn, {"params": params}, images, labels)
    np.testing.assert_array_equal(scores["second"].ravel() > 0, [False, True, False])
    assert np.all(activations.expected_abs(apply_fn, {"params": params}, images)["second"] > 0)


# -- scores of networks without a filter -----------------------------------------------------------


class Normalised(nn.Module):
    """Two convolutions, the first with all that can belong to one; the second ignores filter 1."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(3, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.relu(nn.Conv(4, (1, 1))(x))
        return nn.Dense(3)(x.mean((1, 2)))


def normalised():
    images = normal(7, 4, 4, 2)
    network = Normalised()
    variables = randomised(jax.eval_shape(network.init, jax.random.key(0), images))
    variables["params"]["Conv_1"]["kernel"][:, :, 1] = 0
    variables["params"]["BatchNorm_0"]["bias"][:] = [0.5, 2.0, 1.0]  # shows if left alone
    return network.apply, variables, images


def without(variables, unit):
    """By hand: the first convolution's filter and all that belongs to it."""
    changed = jax.tree.map(np.copy, variables)
    for module, names in (("Conv_0", ("kernel", "bias")), ("BatchNorm_0", ("scale", "bias"))):
        for name in names:
            changed["params"][module][name][..., unit] = 0
    for name in ("mean", "var"):
        changed["batch_stats"]["BatchNorm_0"][name][unit] = 0
    return changed


def test_zero_units_takes_filter_bias_and_normalisation():
    apply_fn, variables, images = normalised()
    ablate = activations.zero_units(apply_fn, variables, images)
    for unit in range(3):
        expected = trees.flatten(without(variables, unit))
        found = trees.flatten(ablate(variables, "Conv_0/kernel", unit))
        for path, leaf in expected.items():
            np.testing.assert_array_equal(found[path], leaf, err_msg=path)


def test_zero_units_leaves_the_normalisation_of_a_sum_alone():
    network = models.create("wrn_28_4", 3, depths=(1,), width=4, stem_width=4)
    images = normal(1, 8, 8, 3)
    variables = randomised(jax.eval_shape(network.init, jax.random.key(0), images))
    own = dict(activations.zero_units(network.apply, variables, images).own)
    names = {path: {name for name, _ in leaves} for path, leaves in own.items()}
    # The first of the block's two convolutions is normalised, the second is added first.
    inner = {f"params/WideBlock_0/BatchNorm_1/{name}" for name in ("scale", "bias")} | {
        f"batch_stats/WideBlock_0/BatchNorm_1/{name}" for name in ("mean", "var")
    }
    assert names["WideBlock_0/Conv_0/kernel"] == {"params/WideBlock_0/Conv_0/kernel", *inner}
    assert names["WideBlock_0/Conv_1/kernel"] == {"params/WideBlock_0/Conv_1/kernel"}
    assert names["Dense_0/kernel"] == {"params/Dense_0/kernel", "params/Dense_0/bias"}


def softmax(logits):
    powers = np.exp(np.asarray(logits, np.float64))
    return powers / powers.sum(axis=-1, keepdims=True)


def test_kl_by_hand_and_zero_for_a_filter_that_nothing_reads():
    apply_fn, variables, images = normalised()
    scores = activations.kl(apply_fn, variables, images, batch_size=4)
    p, expected = softmax(apply_fn(variables, images)), []
    for unit in range(3):
        q = softmax(apply_fn(without(variables, unit), images))
        expected.append(np.mean(np.sum(q * (np.log(q) - np.log(p)), axis=-1)))
    found = scores["Conv_0"]["kernel"]
    assert found.shape == (1, 1, 1, 3)
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-4, atol=1e-6)
    assert abs(found.ravel()[1]) < 1e-6 < 1e-3 < np.delete(found.ravel(), 1).min()
    assert jax.tree.structure(scores) == jax.tree.structure(variables["params"])
    assert scores["Dense_0"]["kernel"].shape == scores["Conv_0"]["bias"].shape == ()


def cka_by_hand(first, second):
    first, second = (np.asarray(features, np.float64) for features in (first, second))
    x, y = first - first.mean(axis=0), second - second.mean(axis=0)
    norm = np.linalg.norm
    return norm(x.T @ y) ** 2 / (norm(x.T @ x) * norm(y.T @ y))


def test_cka_by_hand_and_zero_for_a_filter_that_nothing_reads():
    apply_fn, variables, images = normalised()
    scores = activations.cka(apply_fn, variables, images)["Conv_0"]["kernel"].ravel()

    def features(variables):
        return activations.feature_maps(apply_fn, variables, images)["Conv_1/kernel"].mean((1, 2))

    expected = [
        1 - cka_by_hand(features(variables), features(without(variables, unit)))
        for unit in range(3)
    ]
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-6)
    assert abs(scores[1]) < 1e-9 < 1e-4 < np.delete(scores, 1).min()


def test_cka_is_one_where_nothing_is_left():
    params = {"first": np.ones((1, 1, 1, 1), np.float32), "last": normal(1, 2)}
    images = np.abs(normal(6, 2, 2, 1))
    scores = activations.cka(dense_after(three_filters), {"params": params}, images)
    assert scores["first"].ravel() == 1


def twice_as_loud(variables, path, unit):
    assert path == "first"
    kernel = variables["params"]["first"]
    louder = jnp.where(jnp.arange(kernel.shape[-1]) == unit, 2 * kernel, kernel)
    return {"params": {**variables["params"], "first": louder}}


def test_the_callers_own_ablation_is_what_is_measured():
    params = {"first": normal(1, 1, 2, 3), "last": normal(3, 2)}
    images, apply_fn = normal(4, 2, 2, 2), dense_after(three_filters)
    scores = activations.kl(apply_fn, {"params": params}, images, twice_as_loud)
    p = softmax(apply_fn({"params": params}, images))
    for unit in range(3):
        q = softmax(apply_fn(twice_as_loud({"params": params}, "first", unit), images))
        expected = np.mean(np.sum(q * (np.log(q) - np.log(p)), axis=-1))
        np.testing.assert_allclose(scores["first"].ravel()[unit], expected, rtol=1e-4, atol=1e-7)


# -- what cannot be scored -------------------------------------------------------------------------


def test_errors_come_before_anything_is_computed():
    params = {"first": normal(1, 1, 2, 3), "last": normal(3, 2)}
    variables, images, apply_fn = {"params": params}, normal(4, 2, 2, 2), dense_after(three_filters)
    with pytest.raises(ValueError, match="images is empty"):
        activations.expected_abs(apply_fn, variables, images[:0])
    with pytest.raises(ValueError, match="batch_size is 0"):
        activations.hrank(apply_fn, variables, images, batch_size=0)
    with pytest.raises(ValueError, match="labels has 3 entries for 4 images"):
        activations.pls_vip(apply_fn, variables, images, np.arange(3))
    with pytest.raises(ValueError, match="fewer than two classes"):
        activations.pls_vip(apply_fn, variables, images, np.zeros(4, int))
    with pytest.raises(ValueError, match="has one entry"):
        activations.cka(apply_fn, variables, images[:1])
    linear = dense_after(lambda params, images: images)
    with pytest.raises(ValueError, match="no layer before its last"):
        activations.kl(linear, {"params": {"last": normal(2, 2)}}, images)
    with pytest.raises(ValueError, match="no convolution or dense layer"):
        activations.kl(lambda variables, images: images, variables, images)


def test_a_kernel_that_is_applied_twice_has_no_single_map():
    params = {"first": normal(1, 1, 2, 2), "last": normal(2, 2)}
    twice = dense_after(lambda p, images: conv(nn.relu(conv(images, p["first"])), p["first"]))
    with pytest.raises(ValueError, match="'first' is applied twice"):
        activations.feature_maps(twice, {"params": params}, normal(1, 2, 2, 2))


def test_every_network_of_the_zoo_has_a_map_for_each_of_its_kernels():
    for name, shape in (("mobilenet_v2", (32, 32, 3)), ("resnet50", (32, 32, 3))):
        network = models.create(name, 10)
        image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        variables = jax.eval_shape(network.init, jax.random.key(0), image)
        traced = layers.trace(network.apply, variables, image)
        kernels = trees.prunable(variables["params"])
        assert set(traced.layers) == set(kernels)
        assert traced.last == {"Dense_0/kernel"}
        for path, layer in traced.layers.items():
            assert layer.map.aval.shape[-1] == trees.flatten(variables["params"])[path].shape[-1]


# -- half precision --------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["expected_abs", "hrank", "kl", "cka"])
def test_statistics_of_a_network_in_half_precision_are_taken_in_float32(criterion):
    rng = np.random.default_rng(0)
    params = {
        "kernel": rng.integers(-1, 2, (3, 3, 1, 6)).astype(np.float32),
        "last": rng.integers(-1, 2, (6, 3)).astype(np.float32),
    }
    images = rng.integers(0, 2, (12, 3, 3, 1)).astype(np.float32)

    def network(dtype):
        def apply_fn(variables, images):
            params = jax.tree.map(lambda w: w.astype(dtype), variables["params"])
            maps = nn.relu(conv(images.astype(dtype), params["kernel"]))
            return maps.sum((1, 2)) @ params["last"] / 8

        return apply_fn

    # Small integers, which half precision holds exactly.
    half, full = network(jnp.bfloat16), network(jnp.float32)
    variables = {"params": params}
    np.testing.assert_array_equal(half(variables, images), full(variables, images))
    found, expected = (
        getattr(activations, criterion)(apply_fn, variables, images)["kernel"]
        for apply_fn in (half, full)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert len(np.unique(expected)) > 1
