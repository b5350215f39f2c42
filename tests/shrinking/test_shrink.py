"""The smaller network computes what the masked one does, for every kind of coupling."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import masks, models, shrinking, trees
from prunejax.classifier import Classifier, Network
from prunejax.models.resnet import ResNet
from prunejax.models.wide_resnet import WideBlock

SHAPE = (8, 8, 3)


def classifier_of(module, shape=SHAPE, seed=0):
    """With random numbers in every variable, so that no statistic is 0 or 1."""
    network, rng = Network(module), np.random.default_rng(seed)

    def values(leaf):
        if leaf.ndim < 2:
            return rng.uniform(0.1, 1.1, leaf.shape).astype(np.float32)
        fan_in = leaf.size / leaf.shape[-1]
        return (rng.normal(size=leaf.shape) * (2 / fan_in) ** 0.5).astype(np.float32)

    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), shape))
    return Classifier(jax.tree.map(values, shapes), network)


def random_channel_mask(classifier, shape, share, seed=0):
    """Removes that share of each group of channels, from all layers that make them."""
    traced = shrinking.structure_of(classifier.apply_fn, classifier.variables, shape)
    kept = np.ones(traced.number, bool)
    rng = np.random.default_rng(seed)
    for group in shrinking.groups(traced):
        channels = rng.permutation(group.channels)
        kept[channels[: int(share * len(channels))]] = False
    return made_mask(classifier, traced, kept), kept


def made_mask(classifier, traced, kept):
    """A mask of filters only: what makes the channels, nothing else."""

    def leaf(path, value):
        for axis, own in enumerate(traced.channels.labels[traced.variables[f"params/{path}"]]):
            left = kept[traced.channels.channel[own]]
            if traced.channels.made[own].all() and not left.all():
                shape = [-1 if i == axis else 1 for i in range(np.ndim(value))]
                return jnp.asarray(left.reshape(shape))
        return jnp.array(True)

    return trees.map_with_path(leaf, classifier.params)


def assert_same_outputs(first, second, shape=SHAPE):
    images = jax.random.uniform(jax.random.key(9), (3, *shape))
    run = jax.jit(lambda classifier, images: classifier(images))
    with jax.default_matmul_precision("highest"):
        a, b = run(first, images), run(second, images)
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(a).max())


class Foreign(nn.Module):
    """Concatenation, depthwise and grouped convolution, padded shortcut, pooling, a dense head."""

    @nn.compact
    def __call__(self, x, train=False):
        a = nn.relu(nn.Conv(8, (3, 3), name="left")(x))
        b = nn.relu(nn.Conv(6, (3, 3), name="right")(x))
        x = jnp.concatenate([a, b], axis=-1)
        x = nn.relu(nn.Conv(14, (3, 3), feature_group_count=14, name="depthwise")(x))
        y = nn.BatchNorm(use_running_average=not train, name="norm")(
            nn.Conv(20, (1, 1), strides=2, name="wider")(x)
        )
        x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(y + jnp.pad(x, ((0, 0), (0, 0), (0, 0), (3, 3))))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        first, second = jnp.split(x, 2, axis=-1)
        x = jnp.concatenate([first, 0.5 * second], axis=-1)
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(12, name="hidden")(x))
        return nn.Dense(5, name="head")(x)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (models.create("mlp", num_classes=5, widths=(12, 8)), (9,)),
        (models.create("lenet5", num_classes=5, widths=(6, 8, 10)), SHAPE),
        (models.create("strided_cnn", num_classes=5, widths=(6, 8, 10)), SHAPE),
        (models.create("vgg16", num_classes=5, width=4, hidden=(6,)), (16, 16, 3)),
        (models.create("resnet20", num_classes=5, width=4), SHAPE),
        pytest.param(
            models.create("wrn_28_4", num_classes=5, width=8, stem_width=4),
            SHAPE,
            marks=pytest.mark.exhaustive,
        ),
        (Foreign(), SHAPE),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_the_smaller_network_computes_what_the_masked_one_does(module, shape):
    assert_shrinks(module, shape)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vgg11", {"width": 4, "hidden": (6,)}),
        ("resnet8", {"width": 4}),
        ("resnet18", {"width": 4}),
        ("resnet50", {"width": 4, "stem": "imagenet"}),
        ("resnet56", {"width": 4}),
        ("resnet110", {"width": 4}),
        ("wrn_28_10", {"width": 8, "stem_width": 4}),
        ("mobilenet_v2", {"width": 0.1}),
    ],
)
def test_so_do_the_other_networks_of_the_zoo(name, options):
    assert_shrinks(models.create(name, num_classes=5, **options), (32, 32, 3))


def assert_shrinks(module, shape):
    classifier = classifier_of(module, shape)
    mask, _ = random_channel_mask(classifier, shape, 0.5)

    small = shrinking.shrink(classifier, mask, shape, check=False)
    whole = shrinking.carried(classifier, mask, shape)

    masked = classifier.with_params(masks.apply(classifier.params, whole))
    assert_same_outputs(masked, small, shape)
    assert isinstance(small.apply_fn, Network) == (module != Foreign())
    assert trees.size(small.params) < 0.5 * trees.size(classifier.params)
    # Not one number of the smaller network is of a removed channel, and none is missing.
    sizes = {path: np.size(leaf) for path, leaf in trees.flatten(small.params).items()}
    assert sizes == masks.kept(classifier.params, whole)


def test_training_mode_runs_on_the_smaller_arrays_and_moves_their_statistics():
    classifier = classifier_of(Foreign())
    mask, _ = random_channel_mask(classifier, SHAPE, 0.5)
    small = shrinking.shrink(classifier, mask, SHAPE, carry=True)
    images = jax.random.uniform(jax.random.key(3), (4, *SHAPE))

    logits, moved = small.apply_fn.train(small.variables, images)

    old = small.variables["batch_stats"]["norm"]
    assert jax.tree.map(jnp.shape, moved) == {"batch_stats": {"norm": jax.tree.map(jnp.shape, old)}}
    # The masked network's, where they are left: a channel's statistics are its own.
    whole = shrinking.carried(classifier, mask, SHAPE)
    masked = classifier.with_params(masks.apply(classifier.params, whole))
    expected, all_moved = classifier.apply_fn.train(masked.variables, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    left = np.asarray(whole["norm"]["scale"])
    for name, value in moved["batch_stats"]["norm"].items():
        both = all_moved["batch_stats"]["norm"][name][left], value
        np.testing.assert_allclose(*both, rtol=1e-4, atol=1e-5)


def test_dropout_draws_for_what_is_left_what_it_drew_before():
    class Dropping(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Conv(8, (3, 3))(x)))
            return nn.Dense(3)(x.reshape(len(x), -1))

    classifier = classifier_of(Dropping())
    mask, _ = random_channel_mask(classifier, SHAPE, 0.5)
    small = shrinking.shrink(classifier, mask, SHAPE, carry=True)
    whole = shrinking.carried(classifier, mask, SHAPE)
    masked = classifier.with_params(masks.apply(classifier.params, whole))
    images = jax.random.uniform(jax.random.key(3), (4, *SHAPE))

    def trained(classifier, key):
        return classifier.apply_fn.train(classifier.variables, images, jax.random.key(key))[0]

    np.testing.assert_allclose(trained(small, 5), trained(masked, 5), rtol=1e-4, atol=1e-5)
    assert np.abs(trained(small, 5) - trained(small, 6)).max() > 0.1


def test_a_channel_of_a_sum_stays_until_all_branches_give_it_up():
    classifier = classifier_of(models.create("resnet8", num_classes=5, width=4))
    one = masks.dense(classifier.params)
    one["Conv_0"]["kernel"] = jnp.array([True, False, True, True]).reshape(1, 1, 1, 4)
    both = jax.tree.map(lambda leaf: leaf, one)
    both["BasicBlock_0"]["Conv_1"]["kernel"] = one["Conv_0"]["kernel"]

    alone = shrinking.shrink(classifier, one, SHAPE)
    together = shrinking.shrink(classifier, both, SHAPE, carry=True)

    assert alone.params["Conv_0"]["kernel"].shape[-1] == 4
    assert together.params["Conv_0"]["kernel"].shape[-1] == 3
    assert together.params["BasicBlock_0"]["BatchNorm_1"]["scale"].shape == (3,)
    assert together.params["BasicBlock_1"]["Conv_0"]["kernel"].shape[2] == 3


def test_a_removed_block_is_a_block_of_zeros():
    classifier = classifier_of(models.create("resnet8", num_classes=5, width=4))
    traced = shrinking.structure_of(classifier.apply_fn, classifier.variables, SHAPE)
    assert [block.name for block in shrinking.blocks(traced)] == ["BasicBlock_0"]

    small = shrinking.remove_blocks(classifier, ["BasicBlock_0"], SHAPE)

    zeros = trees.map_with_path(
        lambda path, leaf: 0 * leaf if path.startswith("BasicBlock_0") else leaf, classifier.params
    )
    assert "BasicBlock_0" not in small.params
    assert_same_outputs(classifier.with_params(zeros), small)
    _, moved = small.apply_fn.train(small.variables, jnp.ones((2, *SHAPE)))
    assert "BasicBlock_0" not in moved["batch_stats"]


def test_blocks_in_a_row_are_removed_together():
    """Without a ReLU in between, one block's output is the next one's shortcut."""
    module = ResNet(num_classes=5, depths=(3, 1), width=4, block=WideBlock)
    classifier = classifier_of(module)
    for gone in (["WideBlock_0", "WideBlock_1"], ["WideBlock_2", "WideBlock_0", "WideBlock_1"]):
        small = shrinking.remove_blocks(classifier, gone, SHAPE)
        zeros = trees.map_with_path(
            lambda path, leaf, gone=gone: 0 * leaf if path.split("/")[0] in gone else leaf,
            classifier.params,
        )
        assert not set(gone) & set(small.params)
        assert_same_outputs(classifier.with_params(zeros), small)


def test_channel_counts_are_rounded_up_to_a_multiple():
    classifier = classifier_of(models.create("mlp", num_classes=5, widths=(12, 8)), (9,))
    mask, _ = random_channel_mask(classifier, (9,), 0.5)
    small = shrinking.shrink(classifier, mask, (9,), multiple=4, carry=True)
    assert [small.params[f"Dense_{i}"]["kernel"].shape for i in range(3)] == [
        (9, 8),
        (8, 4),
        (4, 5),
    ]
    whole = shrinking.carried(classifier, mask, (9,))
    assert_same_outputs(classifier.with_params(masks.apply(classifier.params, whole)), small, (9,))


class Normed(nn.Module):
    """A normalisation over channels: none of them can go without changing the others."""

    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(nn.Dense(6, name="hidden")(x))
        return nn.Dense(3, name="head")(x)


@pytest.mark.parametrize("scale", [1.0, 1e-5])
def test_a_network_that_computes_something_else_is_refused_however_small_its_outputs(scale):
    """The biases of what is removed are other than zero."""
    classifier = classifier_of(models.create("mlp", num_classes=5, widths=(6,)), (9,))
    hidden, head = (classifier.params[name] for name in ("Dense_0", "Dense_1"))
    params = {
        "Dense_0": {"kernel": hidden["kernel"], "bias": jnp.ones(6)},
        "Dense_1": {"kernel": scale * head["kernel"], "bias": jnp.zeros(5)},
    }
    mask = masks.dense(params)
    mask["Dense_0"]["kernel"] = jnp.arange(6)[None] < 3
    with pytest.raises(ValueError, match=r"differs by .* from the masked one"):
        shrinking.shrink(classifier.with_params(params), mask, (9,))


def test_what_cannot_be_removed_is_named():
    classifier = classifier_of(Normed(), (4,))
    mask = masks.dense(classifier.params)
    mask["hidden"]["kernel"] = jnp.array([[True, False, True, True, True, True]])
    with pytest.raises(ValueError, match=r"'hidden/kernel'.*reduce_sum.*Exclude"):
        shrinking.shrink(classifier, mask, (4,))
    mask = masks.dense(classifier.params)
    mask["head"]["kernel"] = jnp.array([[True, False, True]])
    with pytest.raises(ValueError, match=r"'head/kernel'.*the network's outputs"):
        shrinking.shrink(classifier, mask, (4,))


def test_a_layer_is_not_removed_altogether():
    classifier = classifier_of(models.create("mlp", num_classes=5, widths=(4, 3)), (9,))
    for nothing in (jnp.zeros((1, 3), bool), jnp.array(False), jnp.zeros((1, 1), bool)):
        mask = masks.dense(classifier.params)
        mask["Dense_1"]["kernel"] = nothing
        with pytest.raises(ValueError, match="all 3 channels that 'Dense_1/kernel' makes"):
            shrinking.shrink(classifier, mask, (9,))


def test_a_block_that_is_none_is_refused():
    classifier = classifier_of(models.create("resnet8", num_classes=5, width=4))
    with pytest.raises(ValueError, match="residual block 'BasicBlock_1'"):
        shrinking.remove_blocks(classifier, ["BasicBlock_1"], SHAPE)


@pytest.mark.parametrize(
    ("sparsity", "multiple", "widths"),
    [(0.5, 1, (4, 4, 8, 16)), (0.3, 4, (8, 8, 16, 28)), (0.95, 1, (1, 1, 2, 3))],
)
def test_channels_that_zeros_are_added_to_are_a_group_of_their_own(sparsity, multiple, widths):
    """Stages of 8, 16 and 32: 8 channels are of all three, 8 of two, and 16 of the last alone."""
    classifier = classifier_of(models.create("resnet20", num_classes=5, width=8))
    traced = shrinking.structure_of(classifier.apply_fn, classifier.variables, SHAPE)
    mask = shrinking.channel_mask(traced, classifier.variables, sparsity, multiple=multiple)
    small = shrinking.shrink(classifier, mask, SHAPE, check=False)
    assert small.apply_fn.module.widths == widths


def test_a_stage_is_not_removed_though_zeros_are_added_to_it():
    classifier = classifier_of(models.create("resnet20", num_classes=5, width=4))
    traced = shrinking.structure_of(classifier.apply_fn, classifier.variables, SHAPE)
    kept = np.ones(traced.number, bool)
    kept[traced.along("params/Conv_0/kernel")[3]] = False
    mask = made_mask(classifier, traced, kept)
    with pytest.raises(ValueError, match=r"all 4 channels that 'BasicBlock_0/Conv_1/kernel' makes"):
        shrinking.shrink(classifier, mask, SHAPE)
