"""Groups of channels are measured one at a time, and those that matter keep most of theirs."""

import dataclasses

import jax
import numpy as np
import pytest

from prunejax import masks, models, shrinking, trees
from prunejax.classifier import Classifier, Network
from prunejax.pruning import Pruner
from prunejax.shrinking import channel_sensitivity

SHAPE = (8, 8, 3)
# Of each group by its first maker: what a block makes inside, and the sums of its stage, which the
# stem or a shortcut makes too.
WIDTHS = {
    f"BasicBlock_{stage}/Conv_{number}/kernel": 8 * 2**stage
    for stage in range(3)
    for number in range(2)
}
OTHERS = {
    "BasicBlock_0/Conv_1/kernel": "Conv_0/kernel",
    "BasicBlock_1/Conv_1/kernel": "BasicBlock_1/shortcut/kernel",
    "BasicBlock_2/Conv_1/kernel": "BasicBlock_2/shortcut/kernel",
}


@pytest.fixture(scope="module")
def resnet():
    network = Network(models.create("resnet8", num_classes=5, width=8))
    classifier = Classifier(network.init(jax.random.key(0), SHAPE), network)
    return classifier, shrinking.structure_of(network, classifier.variables, SHAPE)


def left_of(params, path):
    return np.asarray(trees.flatten(params)[path] != 0).any(axis=(0, 1, 2))


def widths(params):
    """How many channels of each group are left; all its makers must agree of which."""
    for path, other in OTHERS.items():
        np.testing.assert_array_equal(left_of(params, path), left_of(params, other))
    return {path: int(left_of(params, path).sum()) for path in WIDTHS}


def test_each_group_is_pruned_alone_with_all_that_makes_it(resnet):
    classifier, traced = resnet
    seen = []

    def accuracy(params):
        seen.append(widths(params))
        return len(seen)

    table = channel_sensitivity.measure(
        traced, classifier.variables, Pruner(), (0.5, 0.01, 1.0), accuracy
    )

    assert seen[0] == WIDTHS
    assert table.keys() == WIDTHS.keys()
    for path, measured in table.items():
        assert list(measured) == [0.01, 0.5, 1.0]
        assert measured[1.0] == 1  # the whole network, once for all
        for density, left in ((0.01, 1), (0.5, WIDTHS[path] // 2)):  # the guard keeps one
            assert seen[int(measured[density]) - 1] == WIDTHS | {path: left}
    assert len(seen) == 1 + 2 * len(WIDTHS)


def test_what_goes_alone_is_what_goes_with_the_others(resnet):
    classifier, traced = resnet
    mask = shrinking.channel_mask(traced, classifier.variables, 0.5)
    together, seen = masks.apply(classifier.params, mask), []
    channel_sensitivity.measure(
        traced,
        classifier.variables,
        Pruner(allocation="global"),  # which does not count here
        (0.5,),
        lambda params: seen.append(params) or 0.0,
    )
    for params in seen[1:]:
        (path,) = (path for path, left in widths(params).items() if left < WIDTHS[path])
        np.testing.assert_array_equal(left_of(params, path), left_of(together, path))


@pytest.mark.parametrize("share", [0.2, 0.37, 0.5])
def test_groups_that_nothing_depends_on_lose_most_and_the_share_is_exact(resnet, share):
    classifier, traced = resnet
    matters = {"BasicBlock_0/Conv_1/kernel", "BasicBlock_2/Conv_0/kernel"}

    def accuracy(params):
        left = widths(params)
        return sum(left[path] / WIDTHS[path] for path in matters)

    densities = (0.1, 0.3, 0.6)
    table = channel_sensitivity.measure(traced, classifier.variables, Pruner(), densities, accuracy)
    allocation = channel_sensitivity.allocation(traced, table, 1 - share)

    units = sum(WIDTHS.values())
    assert sum(d * WIDTHS[path] for path, d in allocation) == pytest.approx((1 - share) * units)
    assert min(d for path, d in allocation if path in matters) > max(
        d for path, d in allocation if path not in matters
    )
    pruner = dataclasses.replace(Pruner(), allocation=allocation)
    mask = shrinking.channel_mask(traced, classifier.variables, share, pruner)
    left = widths(masks.apply(classifier.params, mask))
    assert units - sum(left.values()) == round(share * units)
    for path, density in allocation:
        assert abs(left[path] - density * WIDTHS[path]) < 1.5  # rounded to the exact sum


def test_excluded_groups_are_not_measured_and_stay_whole(resnet):
    classifier, traced = resnet
    pruner = Pruner(exclude=("Conv_0/*", "*/shortcut/*"))
    inner = WIDTHS.keys() - OTHERS.keys()
    table = channel_sensitivity.measure(
        traced, classifier.variables, pruner, (0.25,), lambda params: 0.0
    )
    assert table.keys() == inner
    allocation = dict(channel_sensitivity.allocation(traced, table, 0.5))
    assert allocation == pytest.approx(dict.fromkeys(inner, 0.5))


def test_densities_are_checked_before_anything_is_measured(resnet):
    classifier, traced = resnet
    for wrong in ((), (0.0, 0.5), (1.5,), (float("nan"),)):
        with pytest.raises(ValueError, match=r"densities is .*; some in \(0, 1\] are needed"):
            channel_sensitivity.measure(traced, classifier.variables, Pruner(), wrong, None)
    with pytest.raises(ValueError, match=r"differ in the layers \['nowhere'\]"):
        channel_sensitivity.allocation(traced, {"nowhere": {1.0: 0.5}}, 0.5)


def test_where_no_channel_may_go_it_says_why_before_anything_is_measured(resnet):
    classifier, traced = resnet
    pruner = Pruner(exclude=("*Conv_*",))  # all groups have such a maker
    with pytest.raises(ValueError, match=r"no channels can be removed: .* exclude"):
        channel_sensitivity.measure(traced, classifier.variables, pruner, (0.5,), None)
