"""Blocks are scored by what they add and by what the network says without them, and ranked so."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.cross_decomposition import PLSRegression

from prunejax import masks, models, pruning, shrinking, trees
from prunejax.classifier import Classifier, Network
from prunejax.models.resnet import ResNet
from prunejax.pruning import Evidence, Pruner

SHAPE = (8, 8, 3)
BLOCKS = ["BasicBlock_0", "BasicBlock_1", "BasicBlock_3"]  # BasicBlock_2 changes the shape
DATA_CRITERIA = ("expected_abs", "hrank", "pls_vip", "kl", "cka")


def evidence_of(images, labels=None):
    labels = np.zeros(len(images), int) if labels is None else labels
    return Evidence(batches=((images, labels),))


@pytest.fixture(scope="module")
def resnet():
    """As many classes as features, random everywhere; BasicBlock_1 adds nothing."""
    network = Network(ResNet(num_classes=8, depths=(2, 2), width=4))
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), SHAPE))
    rng = np.random.default_rng(0)

    def values(leaf):
        if leaf.ndim < 2:
            return rng.uniform(0.1, 1.1, leaf.shape).astype(np.float32)
        return rng.normal(size=leaf.shape).astype(np.float32) * (2 / leaf[..., 0].size) ** 0.5

    variables = jax.tree.map(lambda leaf: values(np.zeros(leaf.shape)), shapes)
    params = variables["params"]
    for name in ("scale", "bias"):
        params["BasicBlock_1"]["BatchNorm_1"][name] *= 0
        params["BasicBlock_3"]["BatchNorm_1"][name][1] = 0  # a channel of zeros
    params["BasicBlock_3"]["BatchNorm_1"]["scale"][0] = 0  # and one that is constant
    return Classifier(jax.tree.map(np.float32, variables), network)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).uniform(size=(7, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def branches(resnet, images):
    """f(x) of each block, as the modules compute them."""
    with jax.default_matmul_precision("highest"):
        _, state = resnet.apply_fn.module.apply(
            resnet.variables, images, capture_intermediates=True
        )
    inner = state["intermediates"]
    return {name: np.asarray(inner[name]["BatchNorm_1"]["__call__"][0]) for name in BLOCKS}


@pytest.fixture(scope="module")
def without(resnet):
    """The networks that have really lost a block, and the whole one under None."""
    smaller = {name: shrinking.remove_blocks(resnet, [name], SHAPE) for name in BLOCKS}
    return {None: resnet} | smaller


def outputs(classifier, images, params=None):
    params = {} if params is None else params
    classifier = classifier.with_params({**classifier.params, **params})
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(lambda c, x: c(x))(classifier, images), np.float64)


def log_softmax(logits):
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


# -- each criterion by hand ------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [3, 256])
def test_kl_is_that_of_the_two_networks_outputs(resnet, images, without, batch_size):
    scores = shrinking.block_scores(
        resnet, SHAPE, Pruner("kl"), evidence_of(images), batch_size=batch_size
    )
    logs = {name: log_softmax(outputs(network, images)) for name, network in without.items()}
    by_hand = {
        name: np.mean(np.sum(np.exp(logs[name]) * (logs[name] - logs[None]), axis=1))
        for name in BLOCKS
    }
    assert list(scores) == BLOCKS
    assert scores == pytest.approx(by_hand, rel=1e-4, abs=1e-6)
    assert scores["BasicBlock_1"] == 0.0 < min(scores["BasicBlock_0"], scores["BasicBlock_3"])


def test_cka_is_that_of_the_features_before_the_last_layer(resnet, images, without):
    scores = shrinking.block_scores(resnet, SHAPE, Pruner("cka"), evidence_of(images))
    # A last layer that changes nothing shows what it reads.
    head = {"Dense_0": {"kernel": np.eye(8, dtype=np.float32), "bias": np.zeros(8, np.float32)}}
    features = {name: outputs(network, images, head) for name, network in without.items()}
    centred = {name: x - x.mean(axis=0) for name, x in features.items()}

    def cka(x, y):
        norm = np.linalg.norm
        return norm(x.T @ y) ** 2 / (norm(x.T @ x) * norm(y.T @ y))

    by_hand = {name: 1 - cka(centred[None], centred[name]) for name in BLOCKS}
    assert scores == pytest.approx(by_hand, rel=1e-3, abs=1e-6)
    assert scores["BasicBlock_1"] == 0.0 < min(scores["BasicBlock_0"], scores["BasicBlock_3"])


@pytest.mark.parametrize("batch_size", [3, 256])
def test_expected_abs_is_the_mean_of_what_is_added(resnet, images, branches, batch_size):
    scores = shrinking.block_scores(
        resnet, SHAPE, Pruner("expected_abs"), evidence_of(images), batch_size=batch_size
    )
    by_hand = {name: np.abs(x).mean() for name, x in branches.items()}
    assert scores == pytest.approx(by_hand, rel=1e-5)
    assert scores["BasicBlock_1"] == 0.0


def test_hrank_is_the_share_of_the_highest_rank(resnet, images, branches):
    scores = shrinking.block_scores(resnet, SHAPE, Pruner("hrank"), evidence_of(images))
    for name, x in branches.items():
        ranks = np.linalg.matrix_rank(x.transpose(0, 3, 1, 2))
        assert scores[name] == pytest.approx(ranks.mean() / x.shape[1], rel=1e-6)
    # Of eight channels one is constant and one zero; the maps of the other six are of full rank.
    assert scores == pytest.approx(
        {"BasicBlock_0": 1, "BasicBlock_1": 0, "BasicBlock_3": (6 + 1 / 4) / 8}
    )


def test_pls_vip_is_the_mean_importance_of_the_channels(resnet, images, branches):
    labels = np.array([0, 1, 2, 0, 1, 2, 0])
    scores = shrinking.block_scores(resnet, SHAPE, Pruner("pls_vip"), evidence_of(images, labels))
    features = np.concatenate([x.max(axis=(1, 2)) for x in branches.values()], axis=1)
    pls = PLSRegression(2, scale=True).fit(features.astype(np.float64), np.eye(3)[labels])
    explained = [
        (pls.x_scores_[:, h] @ pls.x_scores_[:, h])
        * (pls.y_loadings_[:, h] @ pls.y_loadings_[:, h])
        for h in range(2)
    ]
    p = features.shape[1]
    squares = np.array(
        [
            p * sum(s * w**2 for s, w in zip(explained, row, strict=True)) / sum(explained)
            for row in pls.x_weights_ / np.linalg.norm(pls.x_weights_, axis=0)
        ]
    )
    assert squares.sum() == pytest.approx(p)
    by_hand = [part.mean() for part in np.split(np.sqrt(squares), [4, 8])]
    assert list(scores.values()) == pytest.approx(by_hand, rel=1e-3, abs=1e-6)


def test_criteria_of_weights_score_the_layer_that_a_block_ends_with(resnet):
    scores = shrinking.block_scores(resnet, SHAPE)
    assert list(scores) == BLOCKS
    for name, score in scores.items():
        last = np.abs(resnet.params[name]["Conv_1"]["kernel"])
        assert score == pytest.approx(last.mean(), rel=1e-5)


# -- a chain of blocks x + c_i x, whose scores are known -------------------------------------------


class Chain(nn.Module):
    """One channel, scaled by 1 + c_i in each block, and two logits: 0 and the mean."""

    blocks: int = 3

    @nn.compact
    def __call__(self, x):
        def scaled(name, x):
            return nn.Conv(1, (1, 1), name=name)(x)

        x = scaled("stem", x)
        for i in range(self.blocks):
            x = x + scaled(f"block_{i}", x)
        return nn.Dense(2, use_bias=False, name="head")(x.mean(axis=(1, 2)))


def chain(*factors):
    scales = {"stem": 1.0} | {f"block_{i}": c for i, c in enumerate(factors)}
    params = {
        name: {"kernel": jnp.full((1, 1, 1, 1), float(c)), "bias": jnp.zeros(1)}
        for name, c in scales.items()
    }
    params["head"] = {"kernel": jnp.array([[0.0, 1.0]])}
    return Classifier({"params": params}, Network(Chain(len(factors))))


SMALL = (4, 4, 1)
PIXELS = np.random.default_rng(2).uniform(size=(6, *SMALL)).astype(np.float32)


def test_expected_abs_and_kl_of_the_chain_in_closed_form():
    c = np.array([0.1, -0.5, 0.02])
    found = {
        name: list(
            shrinking.block_scores(chain(*c), SMALL, Pruner(name), evidence_of(PIXELS)).values()
        )
        for name in ("expected_abs", "kl")
    }
    before = np.cumprod([1, *(1 + c)])[:-1]
    assert found["expected_abs"] == pytest.approx(np.abs(c) * before * PIXELS.mean(), rel=1e-5)
    means = PIXELS.mean(axis=(1, 2, 3), dtype=np.float64) * np.prod(1 + c)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def kl(a):  # of the means a, to the whole network's
        p, q = sigmoid(means), sigmoid(a)
        return np.mean(q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p)))

    assert found["kl"] == pytest.approx([kl(means / (1 + x)) for x in c], rel=1e-3, abs=1e-7)
    # A block that halves says more than one that adds a tenth, and that more than a fiftieth.
    evidence = evidence_of(PIXELS)
    order = shrinking.lowest_blocks(chain(*c), SMALL, 3, Pruner("kl"), evidence)
    assert order == ("block_2", "block_0", "block_1")


def test_squares_of_vips_sum_to_their_number():
    """With one channel a block the law holds for the blocks."""
    labels = np.arange(len(PIXELS)) % 2
    scores = shrinking.block_scores(
        chain(0.3, -0.7, 2.0), SMALL, Pruner("pls_vip"), evidence_of(PIXELS, labels)
    )
    assert sum(score**2 for score in scores.values()) == pytest.approx(3, rel=1e-5)


def test_rescoring_looks_at_what_is_left():
    # Added, in units of the mean: 0.5, 0.2 * 1.5, 0.3 * 1.5 * 1.2; without block_1 0.5, 0.3 * 1.5.
    options = (chain(0.5, 0.2, 0.3), SMALL, 2, Pruner("expected_abs"), evidence_of(PIXELS))
    assert shrinking.lowest_blocks(*options) == ("block_1", "block_0")
    chosen = shrinking.lowest_blocks(*options, rescore=True)
    assert chosen == ("block_1", "block_2")
    small = shrinking.remove_blocks(options[0], chosen, SMALL)
    mean = PIXELS.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(small(PIXELS)[:, 1], 1.5 * mean, rtol=1e-5)


def test_the_gradient_of_the_objective_scores_blocks():
    classifier = chain(0.5, 0.2, 0.3)

    def loss(params, batch):
        images, _ = batch
        return classifier.with_params(params)(images)[:, 1].mean()  # = m (1 + a)(1 + b)(1 + c)

    evidence = evidence_of(PIXELS)._replace(loss=loss)
    scores = shrinking.block_scores(classifier, SMALL, Pruner("snip"), evidence)
    product = PIXELS.mean() * 1.5 * 1.2 * 1.3
    by_hand = {f"block_{i}": product * c / (1 + c) for i, c in enumerate((0.5, 0.2, 0.3))}
    assert scores == pytest.approx(by_hand, rel=1e-5)


def test_grasp_of_blocks_looks_at_all_allowed_weights_at_once():
    classifier = chain(0.5, 0.2, 0.3)

    def loss(params, batch):
        images, _ = batch
        return classifier.with_params(params)(images)[:, 1].mean()  # = m (1 + a)(1 + b)(1 + c)

    evidence = evidence_of(PIXELS)._replace(loss=loss)
    scores = shrinking.block_scores(classifier, SMALL, Pruner("grasp"), evidence)
    params, batch = classifier.params, evidence.batches[0]

    @jax.jit
    def by_weight(params):
        gradient = jax.grad(loss)
        direction = jax.tree.map(lambda g: g * (g.ndim > 1), gradient(params, batch))  # no biases
        curved = jax.jvp(lambda p: gradient(p, batch), (params,), (direction,))[1]
        return jax.tree.map(jnp.multiply, params, curved)

    expected = by_weight(params)
    by_hand = {name: float(expected[name]["kernel"].sum()) for name in scores}
    assert scores == pytest.approx(by_hand, rel=1e-5)


def test_a_block_is_scored_by_its_last_weight_also_where_that_is_normalised():
    rng = np.random.default_rng(0)
    block = {"first": rng.normal(size=(4, 5)), "second": rng.normal(size=(5, 4))}
    params = {"stem": rng.normal(size=(3, 4)), "block": block, "head": rng.normal(size=(4, 2))}

    def network(variables, x):
        p = variables["params"]
        x = x @ p["stem"]
        normalised = [
            w / (jnp.linspace(1, 2, 1) + w.std(axis=0))
            for w in (p["block"]["first"], p["block"]["second"])
        ]
        x = x + nn.relu(x @ normalised[0]) @ normalised[1]
        return x @ p["head"]

    scores = shrinking.block_scores(Classifier({"params": params}, network), (3,))
    expected = np.abs(block["second"]).mean()
    assert scores == {"block": pytest.approx(expected, rel=1e-5)}


def nested(outer, inner):
    """x + f(x) with f(x) = outer (h + inner h), on one channel."""
    block = {"first": np.ones((1, 1)), "inner": {"w": np.full((1, 1), inner)}}
    block["last"] = np.full((1, 1), outer)
    params = {"stem": np.ones((1, 1)), "outer": block, "head": np.array([[0.0, 1.0]])}

    def network(variables, x):
        p = variables["params"]
        x = x @ p["stem"]
        h = nn.relu(x @ p["outer"]["first"])
        h = h + h @ p["outer"]["inner"]["w"]
        return (x + h @ p["outer"]["last"]) @ p["head"]

    return Classifier({"params": jax.tree.map(np.float32, params)}, network)


@pytest.mark.parametrize("rescore", [True, False])
def test_a_block_inside_a_chosen_one_is_not_chosen_after_it(rescore):
    inside = "outer/inner/w"
    assert set(shrinking.block_scores(nested(1.0, 2.0), (1,))) == {inside, "outer"}
    order = shrinking.lowest_blocks(nested(2.0, 1.0), (1,), 2, rescore=rescore)
    assert order == (inside, "outer")
    assert shrinking.lowest_blocks(nested(1.0, 2.0), (1,), 1, rescore=rescore) == ("outer",)
    with pytest.raises(ValueError, match="number is 2; without outer no residual block is left"):
        shrinking.lowest_blocks(nested(1.0, 2.0), (1,), 2, rescore=rescore)


def test_maps_and_outputs_in_half_precision_are_looked_at_in_float32():
    """One channel, scaled by 1 + c_i in each block; the second logit is its first position."""
    c = np.array([0.25, 0.5])
    params = {f"block_{i}": {"w": np.full((1, 1), x, np.float32)} for i, x in enumerate(c)}
    params["stem"] = np.ones((1, 1), np.float32)

    def network(variables, x):
        p = jax.tree.map(lambda w: w.astype(jnp.bfloat16), variables["params"])
        x = x.astype(jnp.bfloat16) @ p["stem"]
        for i in range(2):
            x = x + x @ p[f"block_{i}"]["w"]
        return jnp.pad(x[:, 0, 0], ((0, 0), (1, 0)))

    classifier = Classifier({"params": params}, network)
    images = np.tile(np.array([1, 0, 0], np.float32).reshape(1, 1, 3, 1), (2, 1, 1, 1))

    def scores(criterion):
        found = shrinking.block_scores(
            classifier, (1, 3, 1), Pruner(criterion), evidence_of(images)
        )
        return list(found.values())

    assert scores("expected_abs") == pytest.approx([c[0] / 3, c[1] * (1 + c[0]) / 3], rel=1e-6)
    assert scores("hrank") == pytest.approx([1 / 3, 1 / 3], rel=1e-6)
    p, q = (log_softmax(np.stack([0 * m, m], axis=1)) for m in (np.full(2, 1.875), 1 + c[::-1]))
    assert scores("kl") == pytest.approx(np.sum(np.exp(q) * (q - p), axis=1), rel=1e-5)


# -- masks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [BLOCKS[:1], BLOCKS[::2], BLOCKS])
def test_under_the_mask_of_blocks_a_network_computes_what_it_does_without_them(
    resnet, images, names
):
    mask = shrinking.block_mask(resnet, names, SHAPE)
    small = shrinking.remove_blocks(resnet, names, SHAPE)
    masked = masks.apply(resnet.params, mask)
    np.testing.assert_allclose(outputs(resnet, images, masked), outputs(small, images), rtol=1e-5)
    kept = {path for path, keep in trees.flatten(mask).items() if keep}
    assert kept == set(trees.flatten(small.params))


def test_blocks_that_are_masked_stay_so_while_the_others_are_trained(resnet, images):
    mask = shrinking.block_mask(resnet, ["BasicBlock_0"], SHAPE)
    params, tx = masks.apply(resnet.params, mask), pruning.masked(optax.adamw(0.01), mask)

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: jnp.square(resnet.with_params(p)(images)).mean())(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(2):
        params, state = step(params, state)
    trained = resnet.with_params(params)
    small = shrinking.remove_blocks(trained, ["BasicBlock_0"], SHAPE)
    np.testing.assert_allclose(outputs(trained, images), outputs(small, images), rtol=1e-5)
    assert np.any(outputs(trained, images) != outputs(resnet, images))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(params["BasicBlock_0"]))


# -- what may be removed, and bad input ------------------------------------------------------------


def test_blocks_with_excluded_weights_are_left_alone(resnet):
    scores = shrinking.block_scores(resnet, SHAPE, Pruner(exclude=("BasicBlock_0/Conv_0/*",)))
    assert list(scores) == ["BasicBlock_1", "BasicBlock_3"]


@pytest.mark.parametrize("criterion", DATA_CRITERIA)
def test_criteria_of_data_without_data_are_refused(criterion):
    for evidence, sentence in (
        (None, f"criterion '{criterion}' needs batches"),
        (evidence_of(PIXELS[:0]), f"a batch without examples; criterion '{criterion}'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            shrinking.block_scores(chain(1), SMALL, Pruner(criterion), evidence)


@pytest.mark.parametrize(
    ("options", "evidence", "message"),
    [
        ({"criterion": "snip"}, None, "criterion 'snip' needs loss and batches"),
        ({"exclude": ("block_*",)}, None, "leaves all of block_0, block_1 alone"),
        ({"exclude": ("stage_9",)}, None, "stage_9"),
        ({"criterion": "kl"}, evidence_of(np.zeros((3, 5, 5, 1))), r"\(5, 5, 1\); image_shape is"),
        ({"criterion": "cka"}, evidence_of(PIXELS[:1]), "holds 1 images; criterion 'cka' needs 2"),
        ({"criterion": "kl"}, evidence_of(PIXELS, np.array([0, 1])), "holds 2 labels for 6 images"),
        ({"criterion": "pls_vip"}, evidence_of(PIXELS), "fewer than two classes"),
    ],
)
def test_bad_choices_are_refused(options, evidence, message):
    with pytest.raises(ValueError, match=message):
        shrinking.block_scores(chain(0.5, 0.2), SMALL, Pruner(**options), evidence)


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match=r"number is 3; the network has 2 .* block_0, block_1"):
        shrinking.lowest_blocks(chain(0.5, 0.2), SMALL, 3)
    with pytest.raises(ValueError, match="batch_size is 0"):
        shrinking.block_scores(chain(0.5), SMALL, Pruner("kl"), evidence_of(PIXELS), batch_size=0)
    whole = Evidence(loss=lambda params, batch: 0.0, batches=((PIXELS, PIXELS),))
    with pytest.raises(ValueError, match=r"evidence\.loss is that of the whole network"):
        shrinking.lowest_blocks(chain(0.5, 0.2), SMALL, 2, Pruner("snip"), whole, rescore=True)


def test_a_network_without_blocks_is_refused():
    network = Network(models.create("mlp", num_classes=3, widths=(4,)))
    classifier = Classifier(network.init(jax.random.key(0), (5,)), network)
    with pytest.raises(ValueError, match="no residual block with an identity shortcut"):
        shrinking.block_scores(classifier, (5,))


class Crowded(nn.Module):
    """Two sums in one module."""

    @nn.compact
    def __call__(self, x):
        x = x + nn.Dense(4, name="second")(nn.relu(nn.Dense(4, name="first")(x)))
        return x + nn.Dense(4, name="fourth")(nn.relu(nn.Dense(4, name="third")(x)))


class Housed(nn.Module):
    house: type[nn.Module]

    @nn.compact
    def __call__(self, x):
        x = self.house(name="house")(nn.Dense(4, name="stem")(x))
        return nn.Dense(2, name="head")(x)


class Parallel(nn.Module):
    """One sum of an input and two branches that share a layer, as in some transformers."""

    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Dense(4, name="both")(x))
        return x + nn.Dense(4, name="first")(h) + nn.Dense(4, name="second")(h)


def test_two_blocks_in_one_module_are_named_by_their_first_variables():
    network = Network(Housed(Crowded))
    classifier = Classifier(network.init(jax.random.key(0), (5,)), network)
    kernels = trees.flatten(classifier.params)
    names = list(shrinking.block_scores(classifier, (5,)))
    assert names == ["house/first/bias", "house/fourth/bias"]
    x = jax.random.uniform(jax.random.key(1), (3, 5))

    def dense(name, x):
        return x @ kernels[f"{name}/kernel"] + kernels[f"{name}/bias"]

    stem = dense("stem", x)
    left = {
        names[1]: stem + dense("house/second", nn.relu(dense("house/first", stem))),
        names[0]: stem + dense("house/fourth", nn.relu(dense("house/third", stem))),
    }
    for gone, expected in left.items():
        smaller = shrinking.remove_blocks(classifier, [gone], (5,))
        np.testing.assert_allclose(smaller(x), dense("head", expected), rtol=1e-5, atol=1e-6)
        assert trees.size(smaller.params) == trees.size(classifier.params) - 2 * 20
        (other,) = shrinking.block_scores(smaller, (5,))  # the other keeps its name
        assert {gone, other} == set(names)
        nothing = shrinking.remove_blocks(smaller, [other], (5,))
        np.testing.assert_allclose(nothing(x), dense("head", stem), rtol=1e-5, atol=1e-6)


def test_a_branch_beside_another_goes_alone_and_does_not_bear_the_name_of_both():
    network = Network(Housed(Parallel))
    classifier = Classifier(network.init(jax.random.key(0), (5,)), network)
    (name,) = shrinking.block_scores(classifier, (5,))
    assert name == "house/first"
    smaller = shrinking.remove_blocks(classifier, [name], (5,))
    assert trees.size(smaller.params) == trees.size(classifier.params) - 20
    params = classifier.params["house"]
    zeros = params | {"first": jax.tree.map(jnp.zeros_like, params["first"])}
    expected = classifier.with_params(classifier.params | {"house": zeros})
    x = jax.random.uniform(jax.random.key(1), (3, 5))
    np.testing.assert_allclose(smaller(x), expected(x), rtol=1e-5, atol=1e-6)
    # Now the other is x + f(x), which it is not in the whole network.
    (other,) = shrinking.block_scores(smaller, (5,))
    with pytest.raises(ValueError, match=f"Unknown residual block '{other}'"):
        shrinking.remove_blocks(smaller, [other], (5,))
