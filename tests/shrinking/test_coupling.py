"""Which channels can go, by what reads them and what they meet; networks are plain functions."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import masks, shrinking
from prunejax.classifier import Classifier
from prunejax.pruning import Pruner

SHAPE = (3, 3, 4)


def classifier_of(function, **shapes):
    """`function(params, images)` with random parameters, none of them 0."""
    rng = np.random.default_rng(0)
    params = {
        name: rng.choice([-1, 1], shape) * rng.uniform(0.1, 1, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    return Classifier({"params": params}, lambda variables, x: function(variables["params"], x))


def structure_of(classifier, shape=SHAPE):
    return shrinking.structure_of(classifier.apply_fn, classifier.variables, shape)


def number_removable(traced, path, axis=-1):
    return int(traced.removable()[traced.along(f"params/{path}")[axis]].sum())


def pooled(function):
    """A layer `a` of six channels, what the function does to them, and a layer that reads them."""

    def network(p, x):
        y = function(p, x, x @ p["a"])
        return y.mean(tuple(range(1, y.ndim - 1))) @ p["b"]

    return network


def log_sum_exp(h):
    return jax.lax.reduce(h, jnp.float32(-jnp.inf), jnp.logaddexp, (1, 2))


def log_sum_exp_pool(h):
    return nn.pooling.pool(h, -jnp.inf, jnp.logaddexp, (2, 2), (1, 1), "VALID")


def average_of_what_is_there(h):
    return nn.avg_pool(h, (2, 2), (2, 2), "SAME", count_include_pad=False)


GAIN = np.linspace(1, 2, 6, dtype=np.float32)
GROWING = np.linspace(0, 1, 3, dtype=np.float32).reshape(1, 3, 1, 1)

# What is done to six channels, and how many of them can go.
ONE_MEETS_ALL = {
    "gate of one channel": (lambda p, x, h: h * nn.sigmoid(h @ p["one"]), 6),
    "parameter of one number": (lambda p, x, h: h * p["number"], 6),
    "first channel": (lambda p, x, h: h * h[..., :1], 5),
    "first channel, picked out": (lambda p, x, h: h * h[..., 0][..., None], 5),
    "constant of each row": (lambda p, x, h: h * GROWING, 6),
    "pixel of the image as a factor": (lambda p, x, h: h * x[..., :1], 6),
    "constant of each channel": (lambda p, x, h: jnp.einsum("bhwc,c->bhwc", h, GAIN), 6),
    "pooling that counts": (lambda p, x, h: average_of_what_is_there(h), 6),
    "stack of two": (lambda p, x, h: jnp.stack([h, jnp.tanh(h)], axis=1).max(1), 6),
    "stack with a constant": (lambda p, x, h: jnp.stack([h, jnp.ones_like(h)], axis=-1).sum(-1), 6),
    "reduction by any function": (lambda p, x, h: log_sum_exp(h)[:, None], 6),
    "pooling by any function": (lambda p, x, h: log_sum_exp_pool(h), 6),
}


def test_what_meets_all_channels_at_once_is_understood():
    pairs = []
    for name, (function, wanted) in ONE_MEETS_ALL.items():
        shapes = {"a": (4, 6), "b": (6, 2), "one": (6, 1), "number": (1,)}
        classifier = classifier_of(pooled(function), **shapes)
        traced = structure_of(classifier)
        assert number_removable(traced, "a") == wanted, name
        assert number_removable(traced, "one") == 0
        mask = shrinking.channel_mask(traced, classifier.variables, 0.5)
        small = shrinking.shrink(classifier, mask, SHAPE, check=False)
        assert small.params["a"].shape == (4, 6 - round(0.5 * wanted)), name
        pairs.append((classifier.with_params(masks.apply(classifier.params, mask)), small))
    images = jax.random.uniform(jax.random.key(0), (3, *SHAPE))
    # As one program, to be compiled once.
    outputs = jax.jit(lambda x: [[network(x) for network in pair] for pair in pairs])(images)
    for name, (expected, found) in zip(ONE_MEETS_ALL, outputs, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "function",
    [
        lambda p, x, h: jnp.pad(x, ((0, 0),) * 3 + ((0, 2),)) + nn.relu(h),
        lambda p, x, h: nn.relu(h) - x[..., :1],
        lambda p, x, h: jnp.maximum(h, jnp.sort(x @ p["sorted"])),
        lambda p, x, h: jnp.where(h > 0, jnp.pad(x, ((0, 0),) * 3 + ((0, 2),)), h),
        lambda p, x, h: jnp.concatenate([h, jnp.pad(x, ((0, 0),) * 3 + ((0, 2),))], axis=1),
        lambda p, x, h: jnp.stack([h, jnp.pad(x, ((0, 0),) * 3 + ((0, 2),))], axis=1),
    ],
    ids=["sum", "difference", "maximum", "choice", "beside", "stacked"],
)
def test_channels_beside_what_no_layer_makes_of_the_images_stay(function):
    classifier = classifier_of(pooled(function), a=(4, 6), b=(6, 2), sorted=(4, 6))
    traced = structure_of(classifier)
    assert number_removable(traced, "a") == 0
    mask = masks.dense(classifier.params)
    mask["a"] = jnp.arange(6)[None] >= 2
    with pytest.raises(ValueError, match=r"'a'.* added to what no layer makes of the images"):
        shrinking.kept_channels(traced, classifier.params, mask)


@pytest.mark.parametrize("meet", [jnp.add, jnp.multiply])
def test_a_parameter_of_each_position_keeps_no_channel_that_is_flattened(meet):
    def network(p, x):
        return meet(nn.relu(x @ p["a"]), p["positions"]).reshape(len(x), -1) @ p["b"]

    classifier = classifier_of(network, a=(4, 6), positions=(5, 6), b=(30, 2))
    traced = structure_of(classifier, (5, 4))
    assert number_removable(traced, "a") == 6
    mask = shrinking.channel_mask(traced, classifier.variables, 0.5)
    small = shrinking.shrink(classifier, mask, (5, 4))
    assert small.params["positions"].shape == (5, 3)
    assert small.params["b"].shape == (15, 2)


def test_what_is_zero_or_the_same_for_all_images_may_be_added():
    def function(p, x, h):
        return jnp.where(x[..., :1] > 0.5, h, 0.0) + jnp.arange(6.0)

    traced = structure_of(classifier_of(pooled(function), a=(4, 6), b=(6, 2)))
    assert number_removable(traced, "a") == 6


def test_a_channel_that_activations_read_too_stays_without_its_layer():
    def attention(p, x):
        h = nn.relu(x @ p["a"])
        weights = nn.softmax(h @ jnp.swapaxes(h, 1, 2))
        return (weights @ (h @ p["b"])).mean(1) @ p["c"]

    def without(p, x):
        return (nn.relu(x @ p["a"]) @ p["b"]).mean(1) @ p["c"]

    for network, left in ((attention, 6), (without, 5)):
        classifier = classifier_of(network, a=(4, 6), b=(6, 3), c=(3, 2))
        traced = structure_of(classifier, (5, 4))
        mask = masks.dense(classifier.params)
        mask["b"] = jnp.arange(6)[:, None] != 2  # what reads channel 2
        kept = shrinking.kept_channels(traced, classifier.params, mask)
        assert kept[traced.along("params/a")[1]].sum() == left
        mask = masks.dense(classifier.params)
        mask["a"] = jnp.arange(6)[None] != 2  # what makes it
        kept = shrinking.kept_channels(traced, classifier.params, mask)
        assert kept[traced.along("params/a")[1]].sum() == 5


def test_a_channel_that_a_tied_weight_reads_too_stays_without_its_layer():
    def tied(p, x):
        h = nn.relu(x @ p["a"])
        return h @ p["b"] + jnp.tanh(h @ p["a"].T) @ p["c"]

    classifier = classifier_of(tied, a=(4, 6), b=(6, 2), c=(4, 2))
    mask = masks.dense(classifier.params)
    mask["b"] = jnp.arange(6)[:, None] != 2
    small = shrinking.shrink(classifier, mask, (4,))
    assert small.params["a"].shape == (4, 6)
    mask["a"] = jnp.arange(6)[None] != 2
    small = shrinking.shrink(classifier, mask, (4,))
    assert small.params["a"].shape == (4, 5)


def test_a_kernel_of_two_factors_reads_what_the_first_one_reads():
    def factorised(p, x):
        return nn.relu(nn.relu(x @ p["a"]) @ (p["first"] @ p["second"])) @ p["b"]

    shapes = {"a": (4, 6), "first": (6, 2), "second": (2, 3), "b": (3, 2)}
    classifier = classifier_of(factorised, **shapes)
    traced = structure_of(classifier, (4,))
    assert shrinking.groups(traced)[0].channels.tolist() == traced.along("params/a")[1].tolist()
    scores = shrinking.channel_scores(traced, classifier.params, Pruner())
    expected = np.abs(classifier.params["a"]).mean(axis=0)
    np.testing.assert_allclose(scores[traced.along("params/a")[1]], expected, rtol=1e-6)
    mask = masks.dense(classifier.params)
    mask["a"], mask["second"] = jnp.arange(6)[None] != 2, jnp.arange(3)[None] != 1
    small = shrinking.shrink(classifier, mask, (4,))
    left = {name: np.shape(leaf) for name, leaf in small.params.items()}
    assert left == {"a": (4, 5), "first": (5, 2), "second": (2, 2), "b": (2, 2)}


def test_weights_that_a_layer_of_weights_makes_become_fewer():
    """As a bias of positions that is computed of constants."""

    def network(p, x):
        positions = nn.relu(jnp.linspace(-1, 1, 5)[:, None] @ p["first"]) @ p["second"]
        return nn.relu(x @ p["a"] + positions).mean(axis=1) @ p["b"]

    shapes = {"first": (1, 8), "second": (8, 6), "a": (4, 6), "b": (6, 2)}
    classifier = classifier_of(network, **shapes)
    traced = structure_of(classifier, (5, 4))
    assert number_removable(traced, "first") == 8
    mask = shrinking.channel_mask(traced, classifier.variables, 0.5)
    small = shrinking.shrink(classifier, mask, (5, 4))
    assert small.params["second"].shape == (4, 3)


def test_channels_that_activations_read_from_each_other_are_named_where_they_are_not_zero():
    def linear_attention(p, x):
        q, k = nn.elu(x @ p["q"]) + 1, nn.elu(x @ p["k"]) + 1
        weights = jnp.einsum("btd,bsd->bts", q, k)
        return ((weights / weights.sum(-1, keepdims=True)) @ (x @ p["v"])).mean(1) @ p["o"]

    classifier = classifier_of(linear_attention, q=(4, 6), k=(4, 6), v=(4, 6), o=(6, 2))
    traced = structure_of(classifier, (5, 4))
    mask = shrinking.channel_mask(traced, classifier.variables, 0.5)
    with pytest.raises(ValueError, match=r"read channels from each other that 'k', 'q' make"):
        shrinking.shrink(classifier, mask, (5, 4))
    others = Pruner(exclude=("q", "k"))
    mask = shrinking.channel_mask(traced, classifier.variables, 0.5, others)
    assert shrinking.shrink(classifier, mask, (5, 4)).params["v"].shape == (4, 3)


def two_layers(p, x):
    return nn.relu(x @ p["a"] + p["bias"]) @ p["b"]


def test_a_mask_of_filters_is_taken_by_its_word():
    classifier = classifier_of(two_layers, a=(4, 6), bias=(6,), b=(6, 2))
    mask = masks.dense(classifier.params)
    mask["a"] = jnp.arange(6)[None] % 3 != 0
    with pytest.raises(ValueError, match=r"keeps what is not zero of 'bias'.* carry=True"):
        shrinking.shrink(classifier, mask, (4,))

    images = np.random.default_rng(1).uniform(size=(5, 4)).astype(np.float32)
    a, bias, b = (np.asarray(classifier.params[name]) for name in ("a", "bias", "b"))
    left = [1, 2, 4, 5]
    expected = np.maximum(images @ a[:, left] + bias[left], 0) @ b[left]
    carried = shrinking.shrink(classifier, mask, (4,), carry=True)
    assert carried.params["bias"].shape == (4,)
    np.testing.assert_allclose(carried(images), expected, rtol=1e-4, atol=1e-5)

    # Where the bias is zero there, the masked network is the smaller one.
    bias = bias * (np.arange(6) % 3 != 0)
    zero = classifier.with_params({**classifier.params, "bias": bias})
    small = shrinking.shrink(zero, mask, (4,))
    np.testing.assert_allclose(small(images), expected, rtol=1e-4, atol=1e-5)
    masked = zero.with_params(masks.apply(zero.params, mask))
    np.testing.assert_allclose(masked(images), expected, rtol=1e-4, atol=1e-5)


def test_a_mask_of_filters_behind_which_zero_is_not_zero_is_refused():
    classifier = classifier_of(lambda p, x: nn.sigmoid(x @ p["a"]) @ p["b"], a=(4, 6), b=(6, 2))
    mask = masks.dense(classifier.params)
    mask["a"] = jnp.arange(6)[None] > 0
    with pytest.raises(ValueError, match=r"what becomes of their zeros.* carry=True"):
        shrinking.shrink(classifier, mask, (4,))
    mask["b"] = jnp.arange(6)[:, None] > 0
    assert shrinking.shrink(classifier, mask, (4,)).params["b"].shape == (5, 2)


@pytest.mark.parametrize(("dtype", "allowed"), [(jnp.float32, ()), (jnp.bfloat16, (0.01,))])
def test_a_difference_is_one_where_it_is_more_than_the_rounding_of_the_network(dtype, allowed):
    """The smaller network lacks what the bias adds: that share of the outputs."""

    def network(p, x):
        h = nn.relu(x @ p["a"] + p["bias"]).astype(dtype)
        return h @ p["b"].astype(dtype)

    for share in (0.01, 0.2):
        params = {"a": np.eye(2), "bias": np.array([0, share]), "b": np.ones((2, 1))}
        params = jax.tree.map(np.float32, params)
        classifier = Classifier({"params": params}, lambda v, x: network(v["params"], x))
        mask = masks.dense(params) | {"a": jnp.array([[True, False]])}
        if share in allowed:
            assert shrinking.shrink(classifier, mask, (2,)).params["b"].shape == (1, 1)
        else:
            with pytest.raises(ValueError, match="keeps what is not zero of 'bias'"):
                shrinking.shrink(classifier, mask, (2,))


def test_a_smaller_network_takes_variables_of_any_dtype():
    def network(p, x):
        h = nn.relu(x.astype(p["a"].dtype) @ p["a"])
        h = h + nn.relu(h @ p["block"]["first"]) @ p["block"]["second"]
        return h @ p["b"]

    shapes = {"a": (4, 6), "b": (6, 2), "first": (6, 5), "second": (5, 6)}
    params = dict(classifier_of(network, **shapes).params)
    params["block"] = {name: params.pop(name) for name in ("first", "second")}
    classifier = Classifier({"params": params}, lambda v, x: network(v["params"], x))
    traced = structure_of(classifier, (4,))
    mask = shrinking.channel_mask(traced, classifier.variables, 0.5)
    small = shrinking.shrink(classifier, mask, (4,), check=False)
    small = shrinking.remove_blocks(small, ["block"], (4,))
    x = jax.random.uniform(jax.random.key(0), (3, 4))
    for dtype, rtol in ((jnp.float32, 1e-5), (jnp.bfloat16, 3e-2)):
        variables = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), small.variables)
        found = small.apply_fn(variables, x)
        expected = jnp.maximum(x @ small.params["a"], 0) @ small.params["b"]
        assert found.dtype == dtype
        error = np.abs(found.astype(jnp.float32) - expected).max()
        assert error <= rtol * np.abs(expected).max()


def test_images_of_another_shape_are_named():
    classifier = classifier_of(two_layers, a=(4, 6), bias=(6,), b=(6, 2))
    mask = masks.dense(classifier.params)
    with pytest.raises(ValueError, match=r"image_shape is \(5,\), and the network does not take"):
        shrinking.shrink(classifier, mask, (5,))
    with pytest.raises(ValueError, match=r"image_shape is \(5,\), and the network does not take"):
        structure_of(classifier, (5,))


def normed(p, x):
    h = x @ p["b"].T
    return (h - h.mean(-1, keepdims=True)) @ p["a"].T


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize(
    ("network", "options", "reason"),
    [
        (normed, {}, "those that 'b' makes must stay, 'reduce_sum' is taken over them"),
        (two_layers, {"exclude": ("a",)}, "pruner leaves 'a' alone"),
        (lambda p, x: x @ p["a"], {}, "'a' makes must stay, they are the network's outputs"),
    ],
    ids=["normalisation", "excluded", "one layer"],
)
def test_where_no_channel_can_go_it_says_why(allocation, network, options, reason):
    classifier = classifier_of(network, a=(4, 6), bias=(6,), b=(6, 4))
    traced, pruner = structure_of(classifier, (4,)), Pruner(allocation=allocation, **options)
    with pytest.raises(ValueError, match=f"no channels can be removed: .*{re.escape(reason)}"):
        shrinking.channel_mask(traced, classifier.variables, 0.5, pruner)
    mask = shrinking.channel_mask(traced, classifier.variables, 0.0, pruner)
    assert masks.density(classifier.params, mask) == 1.0


def convolved(layout):
    def network(p, x):
        y = jax.lax.conv_general_dilated(
            x, p["a"], (1, 1), "VALID", dimension_numbers=("NHWC", layout, "NHWC")
        )
        return y.mean((1, 2)) @ p["b"]

    return network


def heads(p, x):
    q, k, v = (jnp.einsum("btd,dhe->bthe", x, p[name]) for name in ("q", "k", "a"))
    weights = nn.softmax(jnp.einsum("bqhe,bkhe->bhqk", q, k))
    return jnp.einsum("bhqk,bkhe,hed->bd", weights, v, p["b"])


@pytest.mark.parametrize(
    ("network", "kernel", "axis"),
    [
        (lambda p, x: (x @ p["a"]).mean((1, 2)) @ p["b"], (4, 6), 1),
        (lambda p, x: (x @ p["a"].T).mean((1, 2)) @ p["b"], (6, 4), 0),
        (convolved("HWIO"), (2, 2, 4, 6), 3),
        (convolved("HWOI"), (2, 2, 6, 4), 2),
    ],
    ids=["columns", "rows", "filters", "transposed filters"],
)
def test_a_weight_is_scored_where_it_makes_channels_and_the_lowest_go(network, kernel, axis):
    classifier = classifier_of(network, a=kernel, b=(6, 2))
    traced = structure_of(classifier)
    scores = shrinking.channel_scores(traced, classifier.params, Pruner())
    others = tuple(i for i in range(len(kernel)) if i != axis)
    expected = np.abs(classifier.params["a"]).mean(others)
    np.testing.assert_allclose(scores[traced.along("params/a")[axis]], expected, rtol=1e-6)
    mask = shrinking.channel_mask(traced, classifier.variables, 0.5)
    left = np.asarray(mask["a"]).any(others)
    assert set(np.flatnonzero(~left)) == set(np.argsort(expected)[:3])


def test_heads_are_scored_by_the_mean_of_all_that_make_them():
    kernel = (4, 3, 6)
    classifier = classifier_of(heads, q=kernel, k=kernel, a=kernel, b=(3, 6, 2))
    traced = structure_of(classifier, (5, 4))
    scores = shrinking.channel_scores(traced, classifier.params, Pruner())
    assert number_removable(traced, "a", 1) == 3
    heads_of = [np.abs(classifier.params[name]).mean((0, 2)) for name in ("q", "k", "a")]
    expected = np.mean(heads_of, axis=0)
    np.testing.assert_allclose(scores[traced.along("params/a")[1]], expected, rtol=1e-6)
    # What a head's values are made of is its own layer's; queries and keys go together.
    of_values = np.abs(classifier.params["a"]).mean((0, 1))
    np.testing.assert_allclose(scores[traced.along("params/a")[2]], of_values, rtol=1e-6)


@pytest.mark.parametrize("pattern", ["a", "a*", "[a]"])
def test_a_pattern_means_all_groups_that_a_weight_makes(pattern):
    """Heads, and the features of their values; not those of queries and keys."""
    kernel = (4, 4, 6)
    classifier = classifier_of(heads, q=kernel, k=kernel, a=kernel, b=(4, 6, 2))
    traced = structure_of(classifier, (5, 4))
    pruner = Pruner(allocation={pattern: 0.5})
    mask = shrinking.channel_mask(traced, classifier.variables, 5 / 16, pruner)
    small = shrinking.shrink(classifier, mask, (5, 4), check=False)
    assert small.params["a"].shape == (4, 2, 3)
    assert small.params["q"].shape == small.params["k"].shape == (4, 2, 6)


def test_outputs_on_a_first_axis_are_named():
    classifier = classifier_of(convolved("OIHW"), a=(6, 4, 2, 2), b=(6, 2))
    traced = structure_of(classifier)
    with pytest.raises(ValueError, match="the channels of 'a' are on its axis 0 of 4"):
        shrinking.channel_mask(traced, classifier.variables, 0.5)


def held(p, x):
    """Normalised in groups behind `a`, and added to what `c` makes behind `b`."""
    h = (x @ p["a"]).reshape(-1, 2, 3)
    h = (h / (1 + jnp.square(h).mean(-1, keepdims=True))).reshape(-1, 6)
    return (jnp.tanh(h @ p["b"]) + x @ p["c"]) @ p["d"]


HELD = {"a": (4, 6), "b": (6, 5), "c": (4, 5), "d": (5, 2)}


def test_layers_that_keep_all_their_channels_are_listed_with_the_reason():
    traced = structure_of(classifier_of(held, **HELD), (4,))
    assert shrinking.kept_whole(traced) == {
        "a": "a reshape splits them",
        "d": "they are the network's outputs",
    }
    both = structure_of(classifier_of(two_layers, a=(4, 6), bias=(6,), b=(6, 2)), (4,))
    assert list(shrinking.kept_whole(both)) == ["b"]

    def scanned(p, x):
        x = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x @ p["a"], p["rounds"])[0]
        return x @ p["b"]

    shapes = {"a": (4, 6), "b": (6, 2), "rounds": (3, 6, 6)}
    whole = shrinking.kept_whole(structure_of(classifier_of(scanned, **shapes), (4,)))
    assert set(whole) == set(shapes)
    assert whole["a"] == whole["rounds"] == "what 'scan' does to them is not known"


@pytest.mark.parametrize(
    ("include", "reason"),
    [
        (("a",), "'a' makes must stay, a reshape splits them"),
        (("a", "b", "c"), "'a' makes must stay, a reshape splits them"),
        (("[bc]", "d"), "'d' makes must stay, they are the network's outputs"),
        (("c",), "such as those of 'c': pruner leaves 'b' alone"),
    ],
)
def test_a_pattern_that_has_no_effect_is_refused(include, reason):
    classifier = classifier_of(held, **HELD)
    traced = structure_of(classifier, (4,))
    with pytest.raises(ValueError, match=f"in include can remove no channels.*{reason}"):
        shrinking.channel_mask(traced, classifier.variables, 0.5, Pruner(include=include))


@pytest.mark.parametrize("include", ["*", "[abc]", ("b", "c")])
def test_a_pattern_that_has_an_effect_leaves_whole_what_must_stay(include):
    classifier = classifier_of(held, **HELD)
    traced = structure_of(classifier, (4,))
    mask = shrinking.channel_mask(traced, classifier.variables, 0.5, Pruner(include=include))
    kept = masks.kept(classifier.params, mask)
    assert kept == {"a": 24, "b": 6 * 3, "c": 4 * 3, "d": 3 * 2}


@pytest.mark.parametrize(
    "network", [lambda p, x: np.asarray(x) @ p["a"], lambda p, x: x @ p["a"] if x.sum() > 0 else x]
)
def test_a_network_that_cannot_be_traced_is_named(network):
    classifier = classifier_of(network, a=(4, 6))
    with pytest.raises(ValueError, match=r"apply_fn cannot be traced: .* JAX says: .*traced array"):
        structure_of(classifier, (4,))


def test_variables_without_parameters_are_named():
    classifier = Classifier({"a": np.ones((4, 2))}, lambda variables, x: x @ variables["a"])
    for function in (structure_of, shrinking.block_scores):
        with pytest.raises(ValueError, match="variables have no entry 'params'"):
            function(classifier, (4,))
    with pytest.raises(ValueError, match="variables have no entry 'params'"):
        shrinking.shrink(classifier, {"a": np.array(True)}, (4,))
