"""Masks as `prune` makes them, and networks of any library, become smaller networks."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

from prunejax import masks, models, shrinking, trees
from prunejax.classifier import Classifier, Network
from prunejax.models.mobilenet import InvertedResidual
from prunejax.pruning import Pruner, prune

SHAPE = (8, 8, 3)
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def assert_shrinks(classifier, given, shape=SHAPE, others=()):
    """For each mask the smaller network computes what the masked one does.

    All of it is one program, to be compiled once.

    Args:
      classifier: a network whose removed channels are zero throughout under the masks.
      given: the masks.
      shape: of an image.
      others: pairs of networks that are to compute the same too.

    Returns:
      The smaller networks, with shapes instead of arrays.
    """
    smaller = []

    def both(classifier, others, images):
        pairs = list(others)
        for mask in given:
            small = shrinking.shrink(classifier, mask, shape, carry=True, check=False)
            smaller.append(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), small))
            pairs.append((classifier.with_params(masks.apply(classifier.params, mask)), small))
        return [[one(images) for one in pair] for pair in pairs]

    images = jax.random.uniform(jax.random.key(1), (3, *shape))
    with jax.default_matmul_precision("highest"):
        outputs = jax.jit(both)(classifier, others, images)
    for expected, found in outputs:
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    return smaller


# -- masks of `prune` ------------------------------------------------------------------------------


def fresh(name, **options):
    """Biases and shifts are zero, as they are when training begins, and so are removed channels."""
    network = Network(models.create(name, num_classes=5, **options))

    def values(path, leaf):
        if leaf.ndim < 2:
            return np.full(leaf.shape, path.rpartition("/")[-1] in ("scale", "var"), np.float32)
        return normal(*leaf.shape) * (2 / (leaf.size / leaf.shape[-1])) ** 0.5

    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), SHAPE))
    return Classifier(trees.map_with_path(values, shapes), network)


def masks_of(classifier, excluded):
    """By granularity the mask of three quarters of all units but those of the excluded layers."""

    def create(params):
        return {
            granularity: prune(params, 0.75, Pruner(granularity=granularity, exclude=exclude))
            for granularity, exclude in excluded.items()
        }

    return jax.jit(create)(classifier.params)


def left(mask, path):
    """Which units of a layer are left."""
    return np.asarray(trees.flatten(mask)[f"{path}/kernel"]).ravel()


def widths_of(classifier, paths):
    leaves = trees.flatten(classifier.params)
    return [leaves[f"{path}/kernel"].shape[-1] for path in paths]


def test_lenet_loses_what_masks_of_prune_remove():
    classifier = fresh("lenet5", widths=(6, 8, 12))
    # The channels of the images, and the classes, must stay.
    excluded = {"filter": (), "channel": ("Conv_0/*",), "row": (), "column": ("Dense_1/*",)}
    found = masks_of(classifier, excluded)
    flattened = left(found["row"], "Dense_0").reshape(-1, 8)  # positions, channels of Conv_1
    expected = {
        "filter": [left(found["filter"], f"Conv_{i}").sum() for i in (0, 1)] + [12],
        "channel": [left(found["channel"], "Conv_1").sum(), 8, 12],
        "row": [6, flattened.any(axis=0).sum(), left(found["row"], "Dense_1").sum()],
        "column": [6, 8, left(found["column"], "Dense_0").sum()],
    }
    assert 0 < expected["row"][1] < 8
    smaller = assert_shrinks(classifier, found.values())
    for granularity, small in zip(found, smaller, strict=True):
        assert widths_of(small, ("Conv_0", "Conv_1", "Dense_0")) == expected[granularity]
        assert isinstance(small.apply_fn, Network)


@pytest.mark.exhaustive
def test_resnet8_loses_what_masks_of_prune_remove():
    classifier = fresh("resnet8", width=8)
    first, second, third = (f"BasicBlock_{i}" for i in range(3))
    # By width: the layers that make the channels of a sum, and those that read them.
    makers = [
        ("Conv_0", f"{first}/Conv_1"),
        (f"{second}/Conv_1", f"{second}/shortcut"),
        (f"{third}/Conv_1", f"{third}/shortcut"),
        *((f"{block}/Conv_0",) for block in (first, second, third)),
    ]
    readers = [
        (f"{first}/Conv_0", f"{second}/Conv_0", f"{second}/shortcut"),
        (f"{third}/Conv_0", f"{third}/shortcut"),
        (),  # the dense layer, which has no such channels
        *((f"{block}/Conv_1",) for block in (first, second, third)),
    ]
    found = masks_of(classifier, {"filter": (), "channel": ("Conv_0/*",)})
    sizes = (8, 16, 32, 8, 16, 32)

    def kept(granularity, layers, size):
        """What any of the layers keeps."""
        each = [left(found[granularity], path) for path in layers]
        return np.any(each, axis=0).sum() if each else size

    expected = {
        "filter": [kept("filter", *pair) for pair in zip(makers, sizes, strict=True)],
        "channel": [kept("channel", *pair) for pair in zip(readers, sizes, strict=True)],
    }
    smaller = assert_shrinks(classifier, found.values())
    for granularity, small in zip(found, smaller, strict=True):
        assert widths_of(small, [layers[0] for layers in makers]) == expected[granularity]
        assert isinstance(small.apply_fn, Network)
    # Its only columns are the classes.
    columns = prune(classifier.params, 0.5, Pruner(granularity="column"))
    with pytest.raises(ValueError, match=r"'Dense_0/kernel', which cannot be removed: .*outputs"):
        shrinking.shrink(classifier, columns, SHAPE)


# -- other networks --------------------------------------------------------------------------------


def assert_half_goes(classifier, others=()):
    traced = shrinking.structure_of(classifier.apply_fn, classifier.variables, SHAPE)
    mask = shrinking.channel_mask(traced, classifier.variables, 0.5)
    (small,) = assert_shrinks(classifier, [mask], others=others)
    # Not one number of a removed channel is left.
    assert trees.size(small.params) == sum(masks.kept(classifier.params, mask).values())
    assert trees.size(small.params) < 0.7 * trees.size(classifier.params)
    return small


class Block(nnx.Module):
    def __init__(self, rngs):
        self.inner, self.outer = nnx.Linear(8, 6, rngs=rngs), nnx.Linear(6, 8, rngs=rngs)

    def __call__(self, x):
        return x + self.outer(nnx.relu(self.inner(x)))


class Net(nnx.Module):
    """Holds keys of random numbers beside its parameters, and blocks in a list."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = self.dropout(nnx.relu(self.norm(self.conv(x)))).mean((1, 2))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def test_a_module_of_nnx_becomes_smaller():
    net = Net(nnx.Rngs(0))
    net.eval()
    graph, params, others = nnx.split(net, nnx.Param, ...)

    def network(variables, images):
        return nnx.merge(graph, variables["params"], variables["others"])(images)

    classifier = Classifier({"params": params, "others": others}, network)
    traced = shrinking.structure_of(network, classifier.variables, SHAPE)
    names = [block.name for block in shrinking.blocks(traced)]
    assert names == ["blocks/0", "blocks/1"]
    without = shrinking.remove_blocks(classifier, ["blocks/0"], SHAPE)
    assert trees.size(classifier.params) - trees.size(without.params) == 2 * 6 * 8 + 6 + 8
    del net.blocks[0]
    graph_of_one, *own = nnx.split(net, nnx.Param, ...)
    by_hand = Classifier(own, lambda variables, images: nnx.merge(graph_of_one, *variables)(images))
    assert_half_goes(classifier, others=[(by_hand, without)])
    assert_half_goes(without)


def test_plain_functions_on_nested_dicts_with_blocks_in_a_list_become_smaller():
    params = {
        "net/~/conv": {"w": normal(3, 3, 3, 8), "b": normal(8)},
        "net/~/blocks": [(normal(8, 6), normal(6, 8)) for _ in range(3)],
        "net/~/linear": {"w": normal(8, 4), "b": normal(4)},
    }

    def network(variables, images):
        conv, blocks, linear = (
            variables["params"][f"net/~/{name}"] for name in ("conv", "blocks", "linear")
        )
        dimensions = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            images, conv["w"], (1, 1), "SAME", dimension_numbers=dimensions
        )
        x = jax.nn.relu(x + conv["b"]).mean((1, 2))
        for block in blocks:
            x = x + jax.nn.relu(x @ block[0]) @ block[1]
        return x @ linear["w"] + linear["b"]

    classifier = Classifier({"params": params}, network)
    # A name that is given twice is one block.
    names = ["net/~/blocks/1", "net/~/blocks/0", "net/~/blocks/1"]
    without = shrinking.remove_blocks(classifier, names, SHAPE)
    assert without.apply_fn.blocks == ("net/~/blocks/1", "net/~/blocks/0")
    gone, (last, _) = (None, None), (params["net/~/blocks"][2], None)
    assert without.params["net/~/blocks"] == [gone, gone, last]
    by_hand = Classifier({"params": {**params, "net/~/blocks": [last]}}, network)
    assert_half_goes(classifier, others=[(by_hand, without)])
    assert_half_goes(without)

    rounds = shrinking.iterate(
        classifier,
        remove=lambda now: shrinking.remove_blocks(
            now, shrinking.lowest_blocks(now, SHAPE, 1), SHAPE
        ),
        finetune=lambda now, number: now,
        cost=lambda now: trees.size(now.params),
        at_most=trees.size(params) - 2 * 2 * 6 * 8,
    )
    assert [one.cost for one in rounds] == [trees.size(params) - n * 2 * 6 * 8 for n in (1, 2)]


class Depthwise(nn.Module):
    """A MobileNetV2 of two blocks."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(6, (3, 3))(x))
        x = InvertedResidual(features=6, expanded=8, strides=1, residual=True)(x, train)
        x = InvertedResidual(features=10, expanded=12, strides=2, residual=False)(x, train)
        return nn.Dense(4)(x.mean((1, 2)))


def with_random_variables(module):
    network = Network(module)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), SHAPE))
    variables = jax.tree.map(
        lambda leaf: normal(*leaf.shape) if leaf.ndim > 1 else np.abs(normal(*leaf.shape)), shapes
    )
    return Classifier(variables, network)


def test_depthwise_convolutions_lose_whole_groups():
    small = assert_half_goes(with_random_variables(Depthwise()))
    shapes = {path: leaf.shape for path, leaf in trees.flatten(small.params).items()}
    assert shapes["InvertedResidual_0/depthwise/kernel"] == (3, 3, 1, 4)
    assert shapes["InvertedResidual_1/depthwise/kernel"] == (3, 3, 1, 6)
    assert shapes["InvertedResidual_1/project/kernel"] == (1, 1, 6, 5)
