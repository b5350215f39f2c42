"""Channels are chosen together with what they are coupled to, and in exact numbers."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import masks, models, shrinking, trees
from prunejax.classifier import Classifier, Network
from prunejax.pruning import Pruner
from prunejax.pruning.evidence import Criterion, Evidence

SHAPE = (8, 8, 3)


@pytest.fixture(scope="module")
def resnet():
    network = Network(models.create("resnet8", num_classes=5, width=8))
    classifier = Classifier(network.init(jax.random.key(0), SHAPE), network)
    return classifier, shrinking.structure_of(network, classifier.variables, SHAPE)


def given(scores):
    """A criterion that says what it is told to."""
    return Criterion(name="given", score=lambda params, evidence: scores)


def test_coupled_channels_are_one_group(resnet):
    classifier, traced = resnet
    # One sum for each of the three stages, and the inner channels of three blocks.
    sizes = sorted(len(group.channels) for group in shrinking.groups(traced))
    assert sizes == [8, 8, 16, 16, 32, 32]
    del classifier


def test_uniform_removes_its_share_of_every_group_and_all_of_it_can_be_removed(resnet):
    classifier, traced = resnet
    mask = shrinking.channel_mask(traced, classifier.variables, 0.25)
    small = shrinking.shrink(classifier, mask, SHAPE)
    shapes = {path: leaf.shape for path, leaf in trees.flatten(small.params).items()}
    assert shapes["Conv_0/kernel"] == (3, 3, 3, 6)
    assert shapes["BasicBlock_0/Conv_0/kernel"] == (3, 3, 6, 6)
    assert shapes["BasicBlock_1/shortcut/kernel"] == (1, 1, 6, 12)
    assert shapes["BasicBlock_2/Conv_1/kernel"] == (3, 3, 24, 24)
    assert shapes["Dense_0/kernel"] == (24, 5)
    # Nothing of the mask is left as zeros: it was made of what can go.
    assert trees.size(small.params) == sum(masks.kept(classifier.params, mask).values())


def test_global_removes_the_lowest_of_all_by_the_mean_of_their_makers(resnet):
    classifier, traced = resnet
    scores = trees.map_with_path(
        lambda path, leaf: jax.random.uniform(jax.random.key(len(path)), leaf.shape),
        classifier.params,
    )
    pruner = Pruner(criterion=given(scores), allocation="global", guard=False)
    flat = trees.flatten(scores)
    stem = np.asarray(flat["Conv_0/kernel"]).mean(axis=(0, 1, 2))
    second = np.asarray(flat["BasicBlock_0/Conv_1/kernel"]).mean(axis=(0, 1, 2))
    channel_scores = shrinking.channel_scores(traced, classifier.params, pruner)
    np.testing.assert_allclose(
        channel_scores[traced.along("params/Conv_0/kernel")[3]], (stem + second) / 2, rtol=1e-5
    )

    mask = shrinking.channel_mask(traced, classifier.variables, 0.3, pruner)

    everything = np.concatenate([group.channels for group in shrinking.groups(traced)])
    gone = round(0.3 * len(everything))
    lowest = set(everything[np.argsort(channel_scores[everything], kind="stable")[:gone]])
    assert _removed(traced, classifier.params, mask) == {int(channel) for channel in lowest}


def test_lamp_ranks_each_channel_by_its_share_of_its_group(resnet):
    classifier, traced = resnet
    pruner = Pruner(allocation="lamp", guard=False)
    scores = shrinking.channel_scores(traced, classifier.params, pruner)
    shares = np.full(scores.size, np.inf)
    for group, _ in shrinking.groups(traced):
        squares = np.square(scores[group])
        shares[group] = [s / squares[squares >= s].sum() for s in squares]
    mask = shrinking.channel_mask(traced, classifier.variables, 0.4, pruner)
    number = round(0.4 * np.isfinite(shares).sum())
    expected = set(np.argsort(shares, kind="stable")[:number].tolist())
    assert _removed(traced, classifier.params, mask) == expected


def test_drawn_at_random_a_channel_has_one_draw_whatever_makes_it(resnet):
    classifier, traced = resnet
    scores = trees.map_with_path(
        lambda path, leaf: jax.random.uniform(jax.random.key(len(path)), leaf.shape),
        classifier.params,
    )
    pruner = Pruner(given(scores), aggregate="first")
    found = shrinking.channel_scores(traced, classifier.params, pruner)
    first = np.asarray(trees.flatten(scores)["BasicBlock_0/Conv_1/kernel"])[0, 0, 0]  # by path
    np.testing.assert_array_equal(found[traced.along("params/Conv_0/kernel")[3]], first)


def test_channels_that_an_earlier_mask_leaves_nothing_of_go_first():
    network = Network(models.create("mlp", num_classes=5, widths=(6, 4)))
    variables = network.init(jax.random.key(0), (9,))
    traced = shrinking.structure_of(network, variables, (9,))
    current = masks.dense(variables["params"])
    current["Dense_0"]["kernel"] = jnp.arange(6)[None] < 4
    current["Dense_2"]["kernel"] = jnp.arange(4)[:, None] > 0  # nothing reads the first
    # By their scores they would be the last.
    first, second = jnp.arange(6.0)[None], -jnp.arange(4.0)[None]
    scores = {name: {"kernel": x, "bias": 0.0} for name, x in
              (("Dense_0", first), ("Dense_1", second), ("Dense_2", 0.0))}  # fmt: skip
    pruner = Pruner(given(scores))
    for sparsity, gone in ((0.17, ([4], [0])), (0.5, ([0, 4, 5], [0, 3]))):
        mask = shrinking.channel_mask(traced, variables, sparsity, pruner, current=current)
        for number, (units, wanted) in enumerate(zip((6, 4), gone, strict=True)):
            left = _left(mask, f"Dense_{number}/kernel", 1, units)
            assert np.flatnonzero(~left).tolist() == wanted


@pytest.mark.parametrize(
    "pruner", [Pruner("geometric_median"), Pruner(aggregate="sum")], ids=["median", "sums"]
)
def test_under_a_mask_channels_score_what_they_do_in_the_network_without_the_others(pruner):
    network = Network(models.create("mlp", num_classes=5, widths=(6, 4)))
    variables = network.init(jax.random.key(0), (9,))
    traced = shrinking.structure_of(network, variables, (9,))
    mask = shrinking.channel_mask(traced, variables, 0.34)
    small = shrinking.shrink(Classifier(variables, network), mask, (9,), check=False)
    found = shrinking.channel_scores(traced, variables["params"], pruner, current=mask)
    alone = shrinking.structure_of(small.apply_fn, small.variables, (9,))
    expected = shrinking.channel_scores(alone, small.params, pruner)
    for path in ("params/Dense_0/kernel", "params/Dense_1/kernel"):
        own = found[traced.along(path)[1]]
        left = own > -np.inf
        np.testing.assert_allclose(own[left], expected[alone.along(path)[1]], rtol=1e-5)


def test_of_a_sum_the_branches_that_are_left_score(resnet):
    classifier, traced = resnet
    current = masks.dense(classifier.params)
    current["Conv_0"]["kernel"] = (jnp.arange(8) > 0)[None, None, None]
    scores = shrinking.channel_scores(traced, classifier.params, Pruner(), current=current)
    second = np.abs(classifier.params["BasicBlock_0"]["Conv_1"]["kernel"]).mean((0, 1, 2))
    stem = np.abs(classifier.params["Conv_0"]["kernel"]).mean((0, 1, 2))
    expected = np.where(np.arange(8) > 0, (stem + second) / 2, second)
    found = scores[traced.along("params/Conv_0/kernel")[3]]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def _removed(traced, params, mask):
    return {
        int(channel)
        for path in trees.flatten(params)
        for axis, channels in enumerate(traced.along(f"params/{path}"))
        for channel in channels[~_left(mask, path, axis, len(channels))]
    }


def _left(mask, path, axis, size):
    leaf = np.asarray(trees.flatten(mask)[path])
    if not leaf.ndim:
        return np.full(size, bool(leaf))
    left = leaf.any(axis=tuple(a for a in range(leaf.ndim) if a != axis))
    return np.broadcast_to(left, (size,))


def test_the_guard_keeps_a_channel_in_each_group(resnet):
    classifier, traced = resnet
    scores = trees.map_with_path(
        lambda path, leaf: jnp.abs(leaf) * (1e-3 if path.startswith("BasicBlock_0/Conv_0") else 1),
        classifier.params,
    )
    for guard in (True, False):
        pruner = Pruner(criterion=given(scores), allocation="global", guard=guard)
        mask = shrinking.channel_mask(traced, classifier.variables, 0.2, pruner)
        left = _left(mask, "BasicBlock_0/Conv_0/kernel", 3, 8).sum()
        assert left == (1 if guard else 0)


def test_excluded_layers_are_left_alone_with_all_that_is_coupled_to_them(resnet):
    classifier, traced = resnet
    pruner = Pruner(exclude=("Conv_0/kernel",))
    mask = shrinking.channel_mask(traced, classifier.variables, 0.5, pruner)
    assert _left(mask, "Conv_0/kernel", 3, 8).all()
    assert _left(mask, "BasicBlock_0/Conv_1/kernel", 3, 8).all()
    assert _left(mask, "BasicBlock_0/Conv_0/kernel", 3, 8).sum() == 4


@pytest.mark.parametrize("scores", [pytest.param("random", marks=pytest.mark.exhaustive), "equal"])
def test_what_is_kept_for_a_multiple_is_the_best_of_what_would_go(scores):
    network = Network(models.create("mlp", num_classes=5, widths=(12, 8, 3)))
    variables = network.init(jax.random.key(0), (9,))
    params, traced = variables["params"], shrinking.structure_of(network, variables, (9,))
    worth = trees.map_with_path(
        lambda path, leaf: (
            jax.random.uniform(jax.random.key(len(path)), leaf.shape)
            if scores == "random"
            else jnp.ones_like(leaf)
        ),
        params,
    )
    mask = shrinking.channel_mask(traced, variables, 0.5, Pruner(given(worth)), multiple=4)
    # Half of 12, 8 and 3 are 6, 4 and 1 (of 1.5, rounded to even, two go).
    for path, kept in (("Dense_0/kernel", 8), ("Dense_1/kernel", 4), ("Dense_2/kernel", 3)):
        of_units = np.asarray(trees.flatten(worth)[path]).mean(axis=0)
        best = np.sort(np.argsort(of_units, kind="stable")[-kept:])  # of equal ones the last stay
        left = _left(mask, path, 1, len(of_units))
        np.testing.assert_array_equal(np.flatnonzero(left), best)
    # Nothing is left as zeros, which training does not revive.
    small = shrinking.shrink(Classifier(variables, network), mask, (9,))
    assert trees.size(small.params) == sum(masks.kept(params, mask).values())


def grouped(p, x):
    """Groups of two inputs and three outputs."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    for name, groups in (("first", 1), ("second", 4)):
        x = jax.lax.conv_general_dilated(
            x, p[name], (1, 1), "SAME", dimension_numbers=dimensions, feature_group_count=groups
        )
        x = jax.nn.relu(x)
    return x.mean((1, 2)) @ p["last"]


def gated(p, x):
    """Each channel is two columns of the first layer."""
    h = x @ p["first"]
    return (h[..., :6] * jax.nn.sigmoid(h[..., 6:])).mean((1, 2)) @ p["last"]


def led(p, x):
    """The first channel meets all others, and stays."""
    h = x @ p["first"]
    return (h * h[..., :1]).mean((1, 2)) @ p["last"]


@pytest.mark.parametrize(
    ("network", "shapes", "multiple", "widths"),
    [
        # One of two channels at four positions each, and one of three.
        (grouped, {"first": (1, 1, 3, 8), "second": (1, 1, 2, 12), "last": (12, 2)}, 4, (4, 4)),
        (grouped, {"first": (1, 1, 3, 8), "second": (1, 1, 2, 12), "last": (12, 2)}, 8, (8, 8)),
        (gated, {"first": (3, 12), "last": (6, 2)}, 4, (8,)),
        (gated, {"first": (3, 12), "last": (6, 2)}, 5, (10,)),
        (gated, {"first": (3, 12), "last": (6, 2)}, 9, (12,)),
        (led, {"first": (3, 6), "last": (6, 2)}, 2, (4,)),
        (led, {"first": (3, 6), "last": (6, 2)}, 5, (5,)),
        (led, {"first": (3, 6), "last": (6, 2)}, 4, (4,)),
    ],
)
def test_widths_are_multiples_however_many_positions_a_channel_has(
    network, shapes, multiple, widths
):
    """Half of the channels that can go would: 3 of 6, and 2 of 5."""
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    classifier = Classifier({"params": params}, lambda v, x: network(v["params"], x))
    traced = shrinking.structure_of(classifier.apply_fn, classifier.variables, (2, 2, 3))
    mask = shrinking.channel_mask(traced, classifier.variables, 0.5, multiple=multiple)
    # Nothing is left to round, and as much comes back of a mask that is not.
    for own in (mask, shrinking.channel_mask(traced, classifier.variables, 0.5)):
        small = shrinking.shrink(classifier, own, (2, 2, 3), multiple=multiple, check=False)
        found = [small.params[name].shape[-1] for name in ("first", "second") if name in params]
        assert tuple(found) == widths
    assert trees.size(small.params) == sum(masks.kept(params, mask).values())


@pytest.mark.parametrize(
    ("allocation", "sparsity", "kept"),
    [
        # 12, 8 and 3 units, of which eleven stay: 2.05 (21 / 108, 20 / 96, 11 / 24) of them.
        ("erk", 0.5, (5, 3, 3)),
        # 1 / (1 + 0.1245 n)
        ("igq", 0.5, (5, 4, 2)),
        ({"Dense_0/*": 0.5, "Dense_1/kernel": 0.25}, 12 / 23, (6, 2, 3)),
        # Half of the way there.
        ({"Dense_0/*": 0.5, "Dense_1/kernel": 0.25}, 6 / 23, (9, 5, 3)),
    ],
)
def test_every_layer_keeps_what_the_allocation_leaves_it(allocation, sparsity, kept):
    network = Network(models.create("mlp", num_classes=5, widths=(12, 8, 3)))
    variables = network.init(jax.random.key(0), (9,))
    traced = shrinking.structure_of(network, variables, (9,))
    mask = shrinking.channel_mask(traced, variables, sparsity, Pruner(allocation=allocation))
    for number, units in enumerate((12, 8, 3)):
        assert _left(mask, f"Dense_{number}/kernel", 1, units).sum() == kept[number]


def test_of_the_patterns_that_match_one_group_the_first_counts(resnet):
    """The convolutions of a sum make the same channels."""
    classifier, traced = resnet
    first, second = (("BasicBlock_0/Conv_1/kernel", 0.5), ("Conv_0/kernel", 0.25)), (("*", 0.75),)

    def mask(table):
        return shrinking.channel_mask(traced, classifier.variables, 0.2, Pruner(allocation=table))

    jax.tree.map(np.testing.assert_array_equal, mask(first + second), mask(first[:1] + second))
    with pytest.raises(ValueError, match=r"'Conv_7/\*', which matches none of the pruned"):
        mask((*first, ("Conv_7/*", 0.5)))


@pytest.mark.parametrize(
    ("sparsity", "options", "message"),
    [
        (1.0, {}, "sparsity is 1.0"),
        (0.5, {"allocation": {"Conv_7/*": 0.5}}, r"'Conv_7/\*', which matches none of the pruned"),
        (0.5, {"granularity": "2:4"}, "granularity is .2:4.; here whole channels are scored"),
        (0.9, {"allocation": {"Conv_0/*": 0.5}}, r"sparsity is 0\.9, but the densities in"),
        (0.5, {"exclude": ("Dense_9",)}, "Dense_9"),
        (0.5, {"criterion": "snip"}, "criterion 'snip' needs loss and batches"),
    ],
)
def test_bad_choices_are_refused(resnet, sparsity, options, message):
    classifier, traced = resnet
    with pytest.raises(ValueError, match=message):
        shrinking.channel_mask(traced, classifier.variables, sparsity, Pruner(**options))


def test_scores_that_are_no_numbers_remove_nothing(resnet):
    """Else the first channels of each group, and the first block, would go by their index."""
    classifier, traced = resnet
    loss = lambda params, batch: jnp.nan * sum(map(jnp.sum, jax.tree.leaves(params)))  # noqa: E731
    nan = Evidence(loss=loss, batches=(jnp.zeros(1),))
    with pytest.raises(ValueError, match="'snip' gives no unit a score that is a number; look at"):
        shrinking.channel_mask(traced, classifier.variables, 0.5, Pruner("snip"), evidence=nan)
    with pytest.raises(ValueError, match="'snip' gives no unit a score that is a number; look at"):
        shrinking.lowest_blocks(classifier, SHAPE, 1, Pruner("snip"), nan)
    images = Evidence(batches=((jnp.full((2, *SHAPE), jnp.nan), jnp.arange(2)),))
    with pytest.raises(ValueError, match="'expected_abs' gives no unit a score that is a number"):
        shrinking.lowest_blocks(classifier, SHAPE, 1, Pruner("expected_abs"), images)


def test_variables_of_another_network_than_the_traced_one_are_named(resnet):
    classifier, traced = resnet
    with pytest.raises(ValueError, match="variables have no entry 'params'"):
        shrinking.channel_mask(traced, classifier.params, 0.5)
    mask = shrinking.channel_mask(traced, classifier.variables, 0.5)
    small = shrinking.shrink(classifier, mask, SHAPE, check=False)
    stale = r"'params/BasicBlock_0/.* was \(8,\) when .* is \(4,\); trace the network as it is"
    with pytest.raises(ValueError, match=stale):
        shrinking.channel_mask(traced, small.variables, 0.5)
    with pytest.raises(ValueError, match=stale):
        shrinking.kept_channels(traced, small.params, masks.dense(small.params))
    with pytest.raises(ValueError, match=r"'params/other' was missing when"):
        shrinking.channel_scores(traced, {"other": np.ones((2, 2))}, Pruner())


@pytest.mark.exhaustive
def test_rounds_end_at_the_target_and_each_is_smaller_than_the_last(resnet):
    classifier, traced = resnet
    del traced

    def remove(now):
        own = shrinking.structure_of(now.apply_fn, now.variables, SHAPE)
        mask = shrinking.channel_mask(own, now.variables, 0.3)
        return shrinking.shrink(now, mask, SHAPE)

    costs = [trees.size(classifier.params)]
    wanted = 0.4 * costs[0]
    start = Classifier(
        classifier.variables, shrinking.whole(classifier.apply_fn, classifier.variables)
    )
    rounds = shrinking.iterate(
        start,
        remove=remove,
        finetune=lambda now, number: now,
        cost=lambda now: trees.size(now.params),
        at_most=wanted,
    )
    for one in rounds:
        assert one.number == len(costs)
        costs.append(one.cost)
    assert costs[-1] <= wanted < costs[-2]
    assert costs == sorted(costs, reverse=True)
    # Removed twice from the same layer, and still one network of the original's equations.
    network = one.classifier.apply_fn
    again = shrinking.from_description(
        classifier.apply_fn, classifier.variables, shrinking.describe(network)
    )
    assert again == network
    shapes = again.left(jax.ShapeDtypeStruct((2, *SHAPE), jnp.float32))
    assert jax.tree.map(jnp.shape, one.classifier.variables) == jax.tree.map(
        lambda leaf: leaf.shape, shapes
    )


def test_rounds_end_when_the_measured_cost_is_low_enough():
    """Seconds a batch, say, which need not fall with what is removed."""
    seconds = {8: 10.0, 7: 9.0, 6: 11.0, 5: 5.0, 4: 1.0}
    measured = []

    def width(now):
        return now.params["a"].shape[1]

    def cost(now):
        measured.append(width(now))
        return seconds[width(now)]

    def remove(now):
        return now.with_params({"a": now.params["a"][:, :-1]})

    def finetune(now, number):
        return now.with_params({"a": now.params["a"] + number})

    start = Classifier({"params": {"a": np.zeros((3, 8))}}, lambda variables, images: images)
    rounds = list(
        shrinking.iterate(start, remove=remove, finetune=finetune, cost=cost, at_most=5.0)
    )
    assert [(one.number, one.cost, width(one.classifier)) for one in rounds] == [
        (1, 9.0, 7), (2, 11.0, 6), (3, 5.0, 5)
    ]  # fmt: skip
    assert measured == [8, 7, 6, 5]  # each network once, for a measurement takes long
    assert np.all(rounds[-1].classifier.params["a"] == 1 + 2 + 3)
    # Where a run goes on, its rounds are those that are left.
    rest = shrinking.iterate(
        rounds[1].classifier,
        remove=remove,
        finetune=finetune,
        cost=cost,
        at_most=5.0,
        first_round=3,
    )
    assert [(one.number, one.cost) for one in rest] == [(3, 5.0)]
    cheap = rounds[-1].classifier
    assert not list(
        shrinking.iterate(cheap, remove=remove, finetune=finetune, cost=cost, at_most=5.0)
    )


def test_a_round_that_removes_nothing_is_an_error(resnet):
    classifier, _ = resnet
    rounds = shrinking.iterate(
        classifier,
        remove=lambda now: shrinking.shrink(now, masks.dense(now.params), SHAPE),
        finetune=lambda now, number: now,
        cost=lambda now: trees.size(now.params),
        at_most=1,
    )
    with pytest.raises(ValueError, match="remove takes nothing away in round 1"):
        next(rounds)


def test_a_target_that_is_never_reached_is_an_error():
    start = Classifier({"params": {"a": np.zeros((3, 200))}}, lambda variables, images: images)
    costs = []

    def cost(now):
        costs.append(now.params["a"].shape[1])
        return costs[-1]

    rounds = shrinking.iterate(
        start,
        remove=lambda now: now.with_params({"a": now.params["a"][:, 1:]}),
        finetune=lambda now, number: now,
        cost=cost,
        at_most=50,
    )
    with pytest.raises(ValueError, match="cost is 100 after 100 rounds, with at most 50 wanted"):
        list(rounds)
    assert costs == list(range(200, 99, -1))


def small_network(p, x):
    """A convolution and a dense layer whose channels can go, and the last one."""
    h = jax.lax.conv_general_dilated(
        x, p["conv"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.tanh(jnp.tanh(h).reshape(len(x), -1) @ p["dense"]) @ p["last"]


@pytest.mark.parametrize("exclude", [(), pytest.param(("last",), marks=pytest.mark.exhaustive)])
def test_grasp_looks_at_all_allowed_weights_at_once(exclude):
    """H g by the whole Hessian matrix, of the weights that may be pruned."""
    shapes = {"conv": (2, 2, 1, 3), "dense": (12, 4), "last": (4, 2)}
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    batch = jnp.asarray(rng.normal(size=(3, 3, 3, 1))), None
    variables = {"params": params}

    def loss(params, batch):
        return jnp.square(small_network(params, batch[0]) - 1).mean()

    own = {name: leaf for name, leaf in params.items() if name not in exclude}
    flat, unravel = jax.flatten_util.ravel_pytree(own)
    of_flat = lambda flat: loss({**params, **unravel(flat)}, batch)  # noqa: E731
    curved = jax.jit(lambda flat: jax.hessian(of_flat)(flat) @ jax.grad(of_flat)(flat))(flat)
    of_weights = unravel(flat * curved)

    traced = shrinking.structure_of(
        lambda v, x: small_network(v["params"], x), variables, (3, 3, 1)
    )
    evidence = Evidence(loss=loss, batches=(batch,))
    scores = shrinking.channel_scores(traced, params, Pruner("grasp", exclude=exclude), evidence)
    for name in ("conv", "dense"):
        expected = of_weights[name].sum(tuple(range(len(shapes[name]) - 1)))
        found = scores[traced.along(f"params/{name}")[-1]]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_criteria_of_maps_need_no_exclusion_of_the_last_layer():
    """Its units are the classes, which they cannot score, and which no mask removes."""
    network = Network(models.create("mlp", num_classes=5, widths=(6, 4)))
    variables = network.init(jax.random.key(0), (9,))
    traced = shrinking.structure_of(network, variables, (9,))
    images = jax.random.uniform(jax.random.key(1), (7, 9))
    evidence = Evidence(
        network=network, variables=variables, batches=((images, jnp.zeros(7, int)),)
    )
    scores = shrinking.channel_scores(traced, variables["params"], Pruner("expected_abs"), evidence)
    layer = variables["params"]["Dense_0"]
    expected = jnp.maximum(images @ layer["kernel"] + layer["bias"], 0).mean(axis=0)
    found = scores[traced.along("params/Dense_0/kernel")[1]]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
