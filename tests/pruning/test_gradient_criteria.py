"""Criteria of the objective, on models whose gradients and Hessians are known."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prunejax import masks, pruning, shrinking, trees
from prunejax.classifier import Classifier, Network
from prunejax.pruning import CRITERIA, Evidence, Pruner, prune

rng = np.random.default_rng(0)


def quadratic(params, batch):
    """1/2 v'Av + c'v of v = (weights, bias): gradient Av + c, Hessian A."""
    A, c = batch
    v = jnp.concatenate([params["w"].ravel(), params["b"]])
    return 0.5 * v @ A @ v + c @ v


def symmetric():
    root = rng.normal(size=(8, 8))
    return (root + root.T) / 2


W, B = rng.normal(size=(2, 3)), rng.normal(size=2)
PARAMS = {"w": jnp.asarray(W, jnp.float32), "b": jnp.asarray(B, jnp.float32)}
BATCHES = tuple((symmetric(), rng.normal(size=8)) for _ in range(3))
A, C = (np.mean([batch[i] for batch in BATCHES], axis=0) for i in range(2))
V = np.concatenate([W.ravel(), B])
G = A @ V + C
EVIDENCE = Evidence(
    loss=quadratic, batches=tuple((jnp.float32(a), jnp.float32(c)) for a, c in BATCHES)
)


def of_weights(name, evidence=EVIDENCE):
    return np.asarray(CRITERIA[name](PARAMS, evidence)["w"]).ravel()


def test_first_order_criteria_take_the_mean_gradient_of_all_batches():
    np.testing.assert_allclose(of_weights("gradient"), np.abs(G[:6]), rtol=1e-5)
    np.testing.assert_allclose(of_weights("snip"), np.abs(G * V)[:6], rtol=1e-5)
    np.testing.assert_allclose(of_weights("taylor"), np.square(G * V)[:6], rtol=1e-5)
    # A gradient that is known already does as well, but an objective goes first.
    known = {"w": jnp.asarray(G[:6].reshape(2, 3), jnp.float32), "b": jnp.zeros(2)}
    np.testing.assert_allclose(
        of_weights("snip", Evidence(grads=known)), of_weights("snip"), rtol=1e-6
    )
    both = EVIDENCE._replace(grads=jax.tree.map(jnp.zeros_like, known))
    np.testing.assert_array_equal(of_weights("snip", both), of_weights("snip"))


def test_grasp_is_half_of_the_gradient_flow_that_a_weight_takes_along():
    found = of_weights("grasp")
    np.testing.assert_allclose(found, (V[:6] * (A[:6, :6] @ G[:6])), rtol=1e-4, atol=1e-5)

    def flow(v):
        return np.sum((A @ v + C)[:6] ** 2)

    for q, value in enumerate(found):
        step = np.zeros(8)
        step[q] = 1e-6 * V[q]
        by_difference = (flow(V + step) - flow(V - step)) / 4e-6
        np.testing.assert_allclose(value, by_difference, rtol=1e-3, atol=1e-4)


def test_the_taylor_score_of_a_filter_is_the_squared_change_of_a_linear_loss():
    slope = jnp.asarray(rng.normal(size=(3, 3, 2, 4)), jnp.float32)
    params = {"w": jnp.asarray(rng.normal(size=(3, 3, 2, 4)), jnp.float32)}
    loss = lambda p, scale: scale * jnp.sum(slope * p["w"])  # noqa: E731
    evidence = Evidence(loss=loss, batches=(1.0,))
    pruner = Pruner("taylor", "filter")
    found = pruner.scores(params, masks.dense(params), evidence)["w"].ravel()
    whole = loss(params, 1.0)
    for unit in range(4):
        without = {"w": params["w"].at[..., unit].set(0)}
        np.testing.assert_allclose(found[unit], (whole - loss(without, 1.0)) ** 2, rtol=1e-3)
    # Squares of weights would not tell: here two large terms cancel.
    params = {"w": jnp.array([[[1.0, 0.1], [-1.0, 0.1]]])}
    evidence = Evidence(loss=lambda p, _: jnp.sum(p["w"]), batches=(0,))
    mask = prune(params, 0.5, pruner, evidence=evidence)
    np.testing.assert_array_equal(mask["w"].ravel(), [False, True])
    mask = prune(params, 0.5, Pruner("snip", "filter"), evidence=evidence)
    np.testing.assert_array_equal(mask["w"].ravel(), [True, False])


def test_fisher_is_the_mean_square_of_the_gradients_of_single_examples():
    def loss(params, batch):
        x, y = batch
        return jnp.mean(jnp.sum(0.5 * (x @ params["w"] - y) ** 2, axis=-1))

    sizes, w = (5, 2), rng.normal(size=(3, 4))
    batches = [(rng.normal(size=(n, 3)), rng.normal(size=(n, 4))) for n in sizes]
    x, y = (np.concatenate([batch[i] for batch in batches]) for i in range(2))
    expected = np.mean([np.outer(a, r) ** 2 for a, r in zip(x, x @ w - y, strict=True)], axis=0)
    evidence = Evidence(
        loss=loss, batches=tuple(jax.tree.map(jnp.float32, batch) for batch in batches)
    )
    found = CRITERIA["fisher"]({"w": jnp.float32(w)}, evidence)["w"]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_memory_of_fisher_does_not_grow_with_the_examples():
    def loss(params, x):
        return jnp.mean(jnp.square(x @ params["w"]))

    def bytes_for(examples):
        x = jnp.ones((examples, 100))
        run = jax.jit(lambda p, x: CRITERIA["fisher"](p, Evidence(loss=loss, batches=(x,))))
        compiled = run.lower({"w": jnp.ones((100, 100))}, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    one_gradient = 4 * 100 * 100
    assert bytes_for(64) < bytes_for(2) + 2 * one_gradient


def test_products_of_weight_and_gradient_ignore_how_a_hidden_unit_is_scaled():
    x = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)
    params = {
        "in": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
        "out": jnp.asarray(rng.normal(size=(4, 2)), jnp.float32),
    }
    loss = lambda p, x: jnp.mean((nn.relu(x @ p["in"]) @ p["out"] - 1) ** 2)  # noqa: E731
    evidence = Evidence(loss=loss, batches=(x,))
    factors = jnp.array([0.5, 2.0, 3.0, 1.0])
    scaled = {"in": params["in"] * factors, "out": params["out"] / factors[:, None]}
    for name in ("snip", "taylor"):
        first, second = (CRITERIA[name](p, evidence) for p in (params, scaled))
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), first, second
        )
    magnitudes = [CRITERIA["magnitude"](p) for p in (params, scaled)]
    assert not np.allclose(magnitudes[0]["in"], magnitudes[1]["in"])


def test_an_adversarial_objective_scores_by_the_adversarial_gradient():
    # Logistic loss under the worst perturbation of size eps in Linf: margin w'x - eps |w|_1.
    x, eps = np.array([1.0, 0.6, 0.2]), 0.3
    w = np.array([[0.5], [-0.7], [0.9]])

    def loss(params, x):
        perturbed = x - eps * jnp.sign(jax.lax.stop_gradient(params["w"][:, 0]))
        return jnp.sum(nn.softplus(-perturbed @ params["w"]))

    found = CRITERIA["snip"]({"w": jnp.float32(w)}, Evidence(loss=loss, batches=(jnp.float32(x),)))[
        "w"
    ]
    worst = x - eps * np.sign(w[:, 0])
    slope = -1 / (1 + np.exp(worst @ w[:, 0]))
    np.testing.assert_allclose(found[:, 0], np.abs(slope * worst * w[:, 0]), rtol=1e-5)


def test_in_the_optimizer_the_gradient_of_the_step_scores():
    params = {"w": jnp.array([[1.0, -2.0, 3.0, 4.0]])}
    grads = {"w": jnp.array([[4.0, 1.5, 0.2, 0.0]])}
    tx = pruning.optimizer(optax.sgd(0.1), Pruner("snip"), pruning.one_shot(0.5))
    # updated w: 0.6, -2.15, 2.98, 4; |g w|: 2.4, 3.2, 0.6, 0
    _, state = jax.jit(tx.update)(grads, tx.init(params), params)
    np.testing.assert_array_equal(state.mask["w"], [[True, True, False, False]])


@pytest.mark.parametrize("name", ["grasp", "fisher", "taylor"])
def test_the_gradient_of_a_step_does_not_do_for_every_criterion(name):
    """Of a unit that the step normalises, g w sums to zero: taylor would rank rounding errors."""
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(6, 4))
    params = {"w": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)}
    maps = lambda p: x @ p["w"]  # noqa: E731
    normalised = lambda p: jnp.sum(y * maps(p) / jnp.std(maps(p), axis=0))  # noqa: E731
    g = jax.grad(normalised)(params)["w"]
    np.testing.assert_allclose(jnp.sum(g * params["w"], axis=0), 0, atol=1e-5 * jnp.abs(g).max())
    with pytest.raises(ValueError, match=f"criterion '{name}' needs loss and batches"):
        pruning.optimizer(optax.sgd(0.1), Pruner(name, "column"), pruning.one_shot(0.5))


# -- SynFlow ---------------------------------------------------------------------------------------


def layered(params, x):
    for layer in params[:-1]:
        x = nn.relu(x @ layer)
    return x @ params[-1]


LAYERS = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in [(3, 5), (5, 4), (4, 2)]]


def synflow(params, network=layered, **evidence):
    return CRITERIA["synflow"](params, Evidence(network=network, input_shape=(3,), **evidence))


def test_synflow_sums_the_paths_through_a_weight():
    a, b, c = (np.abs(np.asarray(layer, np.float64)) for layer in LAYERS)
    paths = np.einsum("ij,jk,kl->ijkl", a, b, c)
    expected = [paths.sum((2, 3)), paths.sum((0, 3)), paths.sum((0, 1))]
    for found, sums in zip(synflow(LAYERS), expected, strict=True):
        np.testing.assert_allclose(found, sums / paths.sum(), rtol=1e-5)


def test_synflow_of_a_network_whose_flow_is_beyond_float32():
    rng = np.random.default_rng(0)
    deep = [jnp.asarray(rng.uniform(1, 9, (3, 3)), jnp.float32) for _ in range(60)]
    forwards, backwards = [np.ones(3)], [np.ones(3)]
    for layer in deep:
        forwards.append(forwards[-1] @ np.asarray(layer, np.float64))
    for layer in reversed(deep):
        backwards.append(np.asarray(layer, np.float64) @ backwards[-1])
    assert forwards[-1].sum() > 1e60
    for scores in (synflow(deep), jax.jit(synflow)(deep)):
        for i, (found, layer) in enumerate(zip(scores, deep, strict=True)):
            flow = forwards[i][:, None] * np.asarray(layer) * backwards[59 - i]
            np.testing.assert_allclose(found, flow / forwards[-1].sum(), rtol=1e-5)


class Pooled(nn.Module):
    """Max pooling begins with a number that is to have the dtype of the rest."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3), use_bias=False)(x)), (2, 2), (2, 2))
        return nn.Dense(2, use_bias=False)(x.reshape(len(x), -1))


def test_synflow_of_a_network_with_max_pooling():
    network = Network(Pooled())
    params = network.init(jax.random.key(0), (4, 4, 1))["params"]
    evidence = Evidence(network=network, input_shape=(4, 4, 1))
    scores = CRITERIA["synflow"](params, evidence)
    for kernel in trees.flatten(scores).values():
        np.testing.assert_allclose(kernel.sum(), 1, rtol=1e-5)
    mask = prune(params, 0.5, SYNFLOW, evidence=evidence, rounds=3)
    assert sum(int(leaf.sum()) for leaf in jax.tree.leaves(mask)) == (36 + 32) // 2


def test_a_flow_beyond_the_networks_own_dtype_is_an_error():
    def half(params, x):
        for layer in params:
            x = (x.astype(jnp.float16) @ layer.astype(jnp.float16)).astype(jnp.float16)
        return x

    params = [jnp.full((3, 3), 90.0) for _ in range(4)]
    evidence = Evidence(network=half, input_shape=(3,))
    with pytest.raises(ValueError, match="'synflow' gives no unit a score that is a number"):
        prune(params, 0.5, SYNFLOW, evidence=evidence)


def test_synflow_is_conserved_by_layers_and_by_units_whatever_the_signs():
    scores = synflow(LAYERS)
    for layer in scores:
        np.testing.assert_allclose(layer.sum(), 1, rtol=1e-5)
    for before, after in itertools.pairwise(scores):
        np.testing.assert_allclose(before.sum(0), after.sum(1), rtol=1e-5)
    turned = [layer * jnp.sign(jnp.sin(jnp.arange(1.0, layer.shape[1] + 1))) for layer in LAYERS]
    jax.tree.map(np.testing.assert_array_equal, synflow(turned), scores)


def _paths_left(keep):
    """The SynFlow scores of what masks keep: the sums over the paths through each weight."""
    a, b, c = (np.abs(np.asarray(w, float)) * k for w, k in zip(LAYERS, keep, strict=True))
    paths = np.einsum("ij,jk,kl->ijkl", a, b, c)
    return [paths.sum((2, 3)), paths.sum((0, 3)), paths.sum((0, 1))]


SYNFLOW = pruning.Pruner("synflow", allocation="global", guard=False)
OF_LAYERS = Evidence(network=layered, input_shape=(3,))


def test_rounds_score_anew_what_those_before_have_left():
    keep, size = [np.ones(w.shape, bool) for w in LAYERS], sum(w.size for w in LAYERS)
    for sparsity in (1 - 0.2**0.25, 1 - 0.2**0.5, 1 - 0.2**0.75, 0.8):
        scores = np.concatenate([s.ravel() for s in _paths_left(keep)])
        scores[np.concatenate([~k.ravel() for k in keep])] = -1
        flat = np.ones(size, bool)
        flat[np.argsort(scores, kind="stable")[: round(sparsity * size)]] = False
        parts = np.split(flat, np.cumsum([w.size for w in LAYERS])[:-1])
        keep = [part.reshape(w.shape) for part, w in zip(parts, LAYERS, strict=True)]
    found = pruning.prune(LAYERS, 0.8, SYNFLOW, evidence=OF_LAYERS, rounds=4)
    jax.tree.map(np.testing.assert_array_equal, found, keep)
    at_once = pruning.prune(LAYERS, 0.8, SYNFLOW, evidence=OF_LAYERS)
    assert any((a != b).any() for a, b in zip(at_once, keep, strict=True))


def test_a_hundred_rounds_of_synflow_keep_a_path_where_it_is_all_that_may_stay():
    """Tanaka et al. (2020), theorem 3: flow that is conserved is never cut before it must be."""
    sparsity = 1 - len(LAYERS) / sum(w.size for w in LAYERS)
    for rounds, paths in ((1, 0), (100, 1)):
        keep = pruning.prune(LAYERS, sparsity, SYNFLOW, evidence=OF_LAYERS, rounds=rounds)
        assert sum(int(k.sum()) for k in keep) == len(LAYERS)
        assert np.count_nonzero(_paths_left(keep)[0]) == paths


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(4, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, use_bias=False)(x))
        return nn.Dense(2, use_bias=False)(x)


@pytest.mark.parametrize("smaller", [False, True])
def test_synflow_of_a_network_with_batch_statistics(smaller):
    network = Network(Normalised(), mean=0.4, std=0.1)  # its normalisation is left out
    variables = network.init(jax.random.key(0), (3,))
    if smaller:  # by a hidden unit, and by equations, for the module has no widths to choose
        mask = masks.dense(variables["params"])
        mask["Dense_0"]["kernel"] = jnp.array([[True, True, False, True]])
        small = shrinking.shrink(Classifier(variables, network), mask, (3,), carry=True)
        network, variables = small.apply_fn, small.variables
        assert isinstance(network, shrinking.Shrunk)
    params, rest = variables["params"], {"batch_stats": variables["batch_stats"]}
    scores = synflow(params, network, variables=rest)
    first, second = (np.abs(np.asarray(params[f"Dense_{i}"]["kernel"])) for i in range(2))
    paths = np.einsum("ij,jk->ijk", first, second)
    paths /= paths.sum()
    np.testing.assert_allclose(scores["Dense_0"]["kernel"], paths.sum(2), rtol=1e-5)
    np.testing.assert_allclose(scores["Dense_1"]["kernel"], paths.sum(0), rtol=1e-5)


@pytest.mark.parametrize("wrapped", [False, True])
def test_synflow_takes_ones_whatever_the_normalisation_of_images(wrapped):
    def scores(**normalisation):
        network = Network(Normalised(), **normalisation)
        variables = network.init(jax.random.key(0), (3,))
        if wrapped:
            network = shrinking.whole(network, variables)
        collections = {"batch_stats": variables["batch_stats"]}
        return synflow(variables["params"], network, variables=collections)

    normalised = scores(mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))
    jax.tree.map(np.testing.assert_array_equal, normalised, scores())


def test_iterated_synflow_disconnects_no_layer_where_one_round_does():
    # Lee et al. call it layer collapse: a wide layer whose many weights carry little each.
    wide = [jnp.ones((3, 2)), jnp.full((2, 60), 0.1), jnp.ones((60, 2))]
    pruner = Pruner("synflow", allocation="global", guard=False)
    evidence = Evidence(network=layered, input_shape=(3,))
    sparsity = 1 - 6 / 246
    once = prune(wide, sparsity, pruner, evidence=evidence)
    assert min(int(m.sum()) for m in once) == 0
    mask = None
    for _, rate in pruning.constant_rate(sparsity, end=40, frequency=1):
        mask = prune(wide, rate, pruner, evidence=evidence, current=mask)
    assert sum(int(m.sum()) for m in mask) == 6
    assert min(int(m.sum()) for m in mask) >= 1


# -- examples and what is gone ---------------------------------------------------------------------


def test_examples_count_alike_however_they_are_batched():
    x = jnp.asarray(rng.normal(size=(7, 4)), jnp.float32)
    loss = lambda p, x: jnp.mean(jnp.tanh(x @ p["w"]) ** 2)  # noqa: E731
    params = {"w": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)}
    for name in ("gradient", "snip", "taylor", "grasp", "fisher"):
        whole, parts = (
            CRITERIA[name](params, Evidence(loss=loss, batches=batches))["w"]
            for batches in ((x,), (x[:4], x[4:6], x[6:]))
        )
        np.testing.assert_allclose(parts, whole, rtol=1e-4)


def test_grasp_looks_at_the_flow_of_what_is_left():
    curvature = jnp.array([[1.0, 0.0, 10.0], [0.0, 1.0, 0.0], [10.0, 0.0, 1.0]])
    evidence = Evidence(loss=lambda p, a: p["w"][0] @ a @ p["w"][0] / 2, batches=(curvature,))
    left = {"w": jnp.array([[True, True, False]])}
    params = {"w": jnp.array([[1.0, 1.1, 9.0]])}
    # Of the two that are left g = (1, 1.1) and w H g = (1, 1.21).
    mask = prune(params, 2 / 3, Pruner("grasp"), evidence=evidence, current=left)
    np.testing.assert_array_equal(mask["w"], [[False, True, False]])


def test_the_geometric_median_is_that_of_the_filters_that_are_left():
    w = jnp.zeros((1, 2, 10)).at[0, :, :3].set(jnp.array([[5.0, 5.1, -1.0], [0.0, 0.0, 0.0]]))
    left = {"w": (jnp.arange(10) < 3).reshape(1, 1, 10)}
    # Sums of distances 6.1, 6.2 and 12.1: the first stands in for the second.
    mask = prune({"w": w}, 0.8, Pruner("geometric_median", "filter"), current=left)["w"]
    np.testing.assert_array_equal(mask.ravel()[:3], [False, True, True])


@pytest.mark.parametrize("name", ["snip", "fisher"])
def test_examples_that_are_none_and_scores_that_are_no_numbers_are_named(name):
    params = {"w": jnp.ones((4, 2))}
    loss = lambda p, x: jnp.mean(x @ p["w"])  # noqa: E731
    none = Evidence(loss=loss, batches=(jnp.zeros((0, 4)),))
    with pytest.raises(ValueError, match=f"holds a batch without examples; criterion '{name}'"):
        prune(params, 0.5, Pruner(name), evidence=none)
    bad = none._replace(
        loss=lambda p, x: loss(p, x) * jnp.sqrt(-jnp.sum(p["w"])), batches=(jnp.ones((3, 4)),)
    )
    with pytest.raises(ValueError, match=f"'{name}' gives no unit a score that is a number"):
        prune(params, 0.5, Pruner(name), evidence=bad)


def test_a_guard_holds_against_infinite_scores():
    params = {"a": jnp.ones((1, 4)), "b": jnp.full((1, 4), jnp.inf)}
    mask = prune(params, 0.75, Pruner(allocation="global"))
    assert [int(mask[path].sum()) for path in "ab"] == [1, 1]
