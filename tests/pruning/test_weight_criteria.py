"""Criteria of the weights alone, against values by hand, brute force and invariances."""

import functools
import itertools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import Network, masks, models, pruning, trees
from prunejax.pruning import CRITERIA, Criterion, Evidence, Pruner, prune

rng = np.random.default_rng(0)
CONV = jnp.asarray(rng.normal(size=(3, 2, 4, 5)), jnp.float32)
DENSE = jnp.asarray(rng.normal(size=(6, 7)), jnp.float32)


def score(name, leaf, evidence=None):
    return np.asarray(CRITERIA[name]({"w": leaf}, evidence)["w"])


def test_by_hand():
    w = jnp.array([[1.0, -2.0], [0.0, 3.0]])
    np.testing.assert_array_equal(score("magnitude", w), [[1, 2], [0, 3]])
    np.testing.assert_array_equal(score("squared", w), [[1, 4], [0, 9]])
    # 9 / 9, 4 / (9 + 4), 1 / (9 + 4 + 1), 0
    np.testing.assert_allclose(score("lamp", w), [[1 / 14, 4 / 13], [0, 1]], rtol=1e-6)


def test_scores_have_the_structure_of_the_parameters():
    params = {"Conv_0": {"kernel": CONV, "bias": jnp.ones(5)}, "Dense_0": {"kernel": DENSE}}
    params["BatchNorm_0"] = {"scale": jnp.ones(5)}
    evidence = Evidence(norms={"Conv_0/kernel": "BatchNorm_0/scale"})
    for name in ("magnitude", "squared", "random", "lamp", "geometric_median", "norm_scale"):
        scores = pruning.scores(params, name, evidence=evidence)
        assert jax.tree.structure(scores) == jax.tree.structure(params)
        for path in ("Conv_0/kernel", "Dense_0/kernel"):
            assert masks.fits(trees.flatten(scores)[path], trees.flatten(params)[path])


# -- LAMP ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaf", [CONV, CONV.round(1), DENSE * 1e-25], ids=["any", "ties", "tiny"])
def test_lamp_is_the_share_of_all_that_is_as_large(leaf):
    squares = np.square(np.asarray(leaf, np.float64))
    expected = [w / squares[squares >= w].sum() for w in squares.ravel()]
    np.testing.assert_allclose(score("lamp", leaf).ravel(), expected, rtol=1e-5)


def test_lamp_ranks_as_the_magnitude_within_a_layer_and_knows_no_scale():
    order = np.argsort(score("lamp", CONV).ravel())
    np.testing.assert_array_equal(order, np.argsort(np.abs(np.asarray(CONV)).ravel()))
    np.testing.assert_allclose(score("lamp", 64 * CONV), score("lamp", CONV), rtol=1e-6)
    np.testing.assert_array_equal(score("lamp", jnp.zeros((2, 2))), 0)


def test_global_lamp_keeps_the_largest_weight_of_each_layer_without_a_guard():
    params = {"a": 1e-3 * CONV, "b": DENSE}
    left = prune(params, 1 - 2 / 162, Pruner("lamp", allocation="global", guard=False))
    for path, leaf in params.items():
        expected = np.abs(leaf) == np.abs(leaf).max()
        np.testing.assert_array_equal(left[path], expected)
    collapsed = prune(params, 0.9, Pruner(allocation="global", guard=False))
    assert not np.any(collapsed["a"])


# -- geometric median ------------------------------------------------------------------------------


@pytest.mark.parametrize("leaf", [CONV, DENSE], ids=["conv", "dense"])
def test_geometric_median_is_the_sum_of_distances(leaf):
    filters = np.asarray(leaf, np.float64).reshape(-1, leaf.shape[-1]).T
    expected = [sum(np.linalg.norm(f - other) for other in filters) for f in filters]
    found = score("geometric_median", leaf)
    assert found.shape == (*[1] * (leaf.ndim - 1), leaf.shape[-1])
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-5)


def test_geometric_median_moves_with_the_filters():
    base = score("geometric_median", CONV)
    shifted = CONV + jnp.asarray(rng.normal(size=(3, 2, 4, 1)), jnp.float32)
    np.testing.assert_allclose(score("geometric_median", shifted), base, rtol=1e-5)
    order = np.array([3, 1, 4, 0, 2])
    permuted = score("geometric_median", CONV[..., order])
    np.testing.assert_allclose(permuted, base[..., order], rtol=1e-5)


def test_the_filter_in_the_middle_goes_although_it_is_the_largest():
    params = {"w": jnp.array([[[10.0, 12.0, 14.0]]])}
    mask = prune(params, 1 / 3, Pruner("geometric_median", "filter"))
    np.testing.assert_array_equal(mask["w"].ravel(), [True, False, True])


# -- scale of the normalisation --------------------------------------------------------------------

BLOCKS = {
    "Conv_0": {"kernel": jnp.ones((3, 3, 1, 2))},
    "BatchNorm_0": {"scale": jnp.array([-3.0, 1.0])},
    "Block_1": {
        "Conv_1": {"kernel": jnp.ones((1, 1, 2, 3))},
        "BatchNorm_1": {"scale": jnp.array([0.5, -0.1, 2.0])},
        "shortcut": {"kernel": jnp.ones((1, 1, 2, 3))},
        "shortcut_norm": {"scale": jnp.array([4.0, 5.0, -6.0])},
    },
    "Dense_0": {"kernel": jnp.ones((3, 2))},
}
GIVEN = {
    "Conv_0/kernel": "BatchNorm_0/scale",
    "Block_1/Conv_1/kernel": "Block_1/BatchNorm_1/scale",
    "Block_1/shortcut/kernel": "Block_1/shortcut_norm/scale",
}


def test_scales_are_those_that_are_named():
    found = trees.flatten(CRITERIA["norm_scale"](BLOCKS, Evidence(norms=GIVEN)))
    np.testing.assert_array_equal(found["Conv_0/kernel"].ravel(), [3, 1])
    np.testing.assert_allclose(found["Block_1/Conv_1/kernel"], [[[[0.5, 0.1, 2.0]]]])
    np.testing.assert_array_equal(found["Block_1/shortcut/kernel"].ravel(), [4, 5, 6])
    pruner = Pruner("norm_scale", "filter", "global")
    mask = trees.flatten(prune(BLOCKS, 0.5, pruner, evidence=Evidence(norms=GIVEN)))
    np.testing.assert_array_equal(mask["Conv_0/kernel"].ravel(), [True, False])
    np.testing.assert_array_equal(mask["Block_1/Conv_1/kernel"].ravel(), [False, False, True])
    # Under the granularity of weights a scale counts for each weight before it.
    pruner = Pruner("norm_scale", include=["Conv_0/*"])
    mask = prune(BLOCKS, 0.5, pruner, evidence=Evidence(norms=GIVEN))
    np.testing.assert_array_equal(mask["Conv_0"]["kernel"].sum((0, 1, 2)), [9, 0])


@pytest.mark.parametrize(
    ("pruner", "norms", "message"),
    [
        # Names say nothing: in pre-activation networks BatchNorm_0 comes before Conv_0.
        (Pruner("norm_scale", "filter"), None, r"follows '\S+/kernel'; exclude it.*network=\.\.\."),
        (Pruner("norm_scale", include=["Dense_0/*"]), None, "follows 'Dense_0/kernel'"),
        (Pruner("norm_scale", "filter"), {"Conv_0/kernel": "Conv_0/scale"}, "'Conv_0/scale'"),
        (
            Pruner("norm_scale", "filter", include=["Conv_0/*"]),
            {"Conv_0/kernel": "Block_1/BatchNorm_1/scale"},
            r"has shape \(3,\), but 'Conv_0/kernel' has 2 outputs",
        ),
    ],
)
def test_weights_without_a_scale_are_named(pruner, norms, message):
    with pytest.raises(ValueError, match=message):
        prune(BLOCKS, 0.5, pruner, evidence=Evidence(norms=norms))


ZOO = {
    "resnet8": {"width": 2},
    "wrn_28_4": {"width": 4, "stem_width": 3},
    "mobilenet_v2": {"width": 0.25},
    "vgg11": {},
    "vgg16": {},
    "resnet18": {"width": 2},
    "resnet20": {"width": 2},
    "resnet50": {"width": 2},
    "resnet56": {"width": 2},
    "resnet110": {"width": 2},
    "wrn_28_10": {"width": 4},
}
ALWAYS = ("resnet8", "wrn_28_4")  # of both kinds of blocks one


def traced(name):
    """The network, and the order in which its convolutions and normalisations run."""
    network = Network(models.create(name, 3, **ZOO[name]))
    order = []

    def note(call, args, kwargs, context):
        if isinstance(context.module, nn.Conv | nn.BatchNorm):
            order.append((type(context.module), "/".join(context.module.path)))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        init = functools.partial(network.module.init, jax.random.key(0))
        variables = jax.eval_shape(init, jnp.zeros((1, 16, 16, 3)))
    return network, variables, order


@pytest.mark.parametrize(
    "name", [n if n in ALWAYS else pytest.param(n, marks=pytest.mark.exhaustive) for n in ZOO]
)
def test_in_every_network_of_the_zoo_each_convolution_has_the_scale_behind_it(name):
    network, variables, order = traced(name)
    rest = {key: value for key, value in variables.items() if key != "params"}
    shapes = trees.flatten(variables["params"])
    # Scales that tell where they come from: that of the i-th is i, i + .01, ...
    norms = [path for kind, path in order if kind is nn.BatchNorm]
    values = {
        path: np.full(leaf.shape, -1.0)
        if "scale" not in path
        else norms.index(path.removesuffix("/scale")) + 0.01 * np.arange(leaf.shape[0])
        for path, leaf in shapes.items()
    }
    params = trees.unflatten(variables["params"], values)
    pruner = Pruner("norm_scale", "filter")
    evidence = Evidence(network=network, variables=rest, input_shape=(16, 16, 3))
    evidence = evidence._replace(paths=pruner.paths(params))
    found = trees.flatten(CRITERIA["norm_scale"].score(params, evidence))

    for place, (kind, path) in enumerate(order):
        if kind is nn.BatchNorm:
            continue
        # A shortcut of a pre-activation block runs before the branch it is added to: with its
        # branch it is normalised behind the sum.
        first = place
        if name.startswith("wrn") and path.endswith("shortcut"):
            first = [p for _, p in order].index(path.replace("shortcut", "Conv_1"))
        follower = next(p for k, p in order[first:] if k is nn.BatchNorm)
        units = shapes[f"{path}/kernel"].shape[-1]
        expected = norms.index(follower) + 0.01 * np.arange(units)
        np.testing.assert_allclose(found.pop(f"{path}/kernel")[0, 0, 0], expected, rtol=1e-6)
    assert not any(map(np.any, found.values()))  # of the others there is nothing to say


def normalised(params, images):
    """A dense layer, ReLU, then normalisation; another that no normalisation follows."""
    hidden = jax.nn.relu(images @ params["first"]["w"]) * params["after"]["gamma"]
    return hidden @ params["last"]["w"]


def test_the_equations_of_any_network_say_what_scales_a_layer():
    params = {
        "first": {"w": jnp.ones((2, 3))},
        "after": {"gamma": jnp.array([1.0, -3.0, 2.0])},
        "last": {"w": jnp.ones((3, 3))},
    }
    evidence = Evidence(network=normalised, input_shape=(2,))
    pruner = Pruner("norm_scale", "column", include="first/w")
    mask = prune(params, 1 / 3, pruner, evidence=evidence)
    np.testing.assert_array_equal(mask["first"]["w"], [[False, True, True]])
    by_pairs = Evidence(network=normalised, batches=((np.ones((4, 2)), np.ones(4)),))
    jax.tree.map(
        np.testing.assert_array_equal, prune(params, 1 / 3, pruner, evidence=by_pairs), mask
    )
    with pytest.raises(ValueError, match="knows no normalisation that follows 'last/w'; exclude"):
        prune(params, 1 / 3, Pruner("norm_scale", "column"), evidence=evidence)
    given = evidence._replace(norms={"last/w": "after/gamma"})
    both = prune(params, 1 / 3, Pruner("norm_scale", "column"), evidence=given)
    np.testing.assert_array_equal(both["last"]["w"], [[False, True, True]])


# -- half precision --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize(
    ("criterion", "aggregate"),
    [("squared", None), ("magnitude", "l2"), ("lamp", None), ("taylor", None)],
)
def test_scores_of_half_precision_are_those_of_the_same_weights_in_float32(
    dtype, criterion, aggregate
):
    scale = 1e-5 if dtype == jnp.float16 else 1e-25  # whose squares are zero in that type
    half = {"w": (CONV * scale).astype(dtype)}
    full = jax.tree.map(lambda w: w.astype(jnp.float32), half)
    scores = []
    for params in (half, full):
        pruner = Pruner(criterion, "filter" if aggregate else "weight", aggregate=aggregate)
        loss = lambda p, _: jnp.vdot(jax.lax.stop_gradient(p["w"]), p["w"])  # noqa: E731
        known = Evidence(loss=loss, batches=(0,))  # the gradient is w
        scores.append(pruner.scores(params, masks.dense(params), known)["w"])
    np.testing.assert_array_equal(*scores)
    if dtype == jnp.float16:
        assert np.all(np.asarray(scores[0]) > 0) or criterion == "taylor"


# -- what is not a number --------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["weight", "column", "2:4"])
def test_what_is_not_a_number_goes_first(granularity):
    values = np.arange(1.0, 33).reshape(4, 8)
    values[0] = np.nan
    if granularity == "column":
        values[:, :4] = np.nan
    mask = prune({"w": jnp.asarray(values)}, 0.5, Pruner(granularity=granularity))["w"]
    kept = np.broadcast_to(mask, values.shape)
    assert kept.sum() == 16
    if granularity == "column":
        np.testing.assert_array_equal(kept.any(0), kept.all(0))
    else:
        assert not np.isnan(values[kept]).any()


def test_the_guard_holds_where_a_layer_is_not_a_number():
    params = {"a": CONV, "d": jnp.full((8, 6), jnp.nan)}
    current = None
    for sparsity in (0.5, 0.9):
        mask = prune(params, sparsity, Pruner(allocation="global"), current=current)
        kept = {path: int(leaf.sum()) for path, leaf in mask.items()}
        total = 120 + 48
        assert sum(kept.values()) == total - round(sparsity * total)
        assert kept["d"] == 1
        current = mask
    largest = np.sort(np.abs(CONV).ravel())[-kept["a"]]
    np.testing.assert_array_equal(mask["a"], np.abs(CONV) >= largest)


# -- evidence --------------------------------------------------------------------------------------


def never(*args):
    raise AssertionError("computed before the evidence was complete")


@pytest.mark.parametrize(
    ("name", "evidence", "missing"),
    [
        *((n, Evidence(), "loss and batches") for n in ("snip", "taylor", "gradient")),
        *((n, Evidence(), "loss and batches") for n in ("grasp", "fisher")),
        *((n, Evidence(loss=never), "batches") for n in ("snip", "grasp", "fisher")),
        *((n, Evidence(grads={}), "loss and batches") for n in ("fisher", "taylor")),
        ("synflow", Evidence(), "network and input_shape"),
        ("synflow", Evidence(network=never), "input_shape"),
        ("learned", Evidence(), "scores"),
        ("random", Evidence(), "key"),
    ],
)
def test_missing_evidence_is_named_before_anything_is_computed(name, evidence, missing):
    listed = ", ".join(f"{field}=..." for field in missing.split(" and "))
    message = f"criterion '{name}' needs {missing}; pass evidence=Evidence({listed})."
    with pytest.raises(ValueError, match=re.escape(message)):
        CRITERIA[name]({"w": DENSE}, evidence)
    if name != "random":  # `prune` brings a key
        with pytest.raises(ValueError, match=re.escape(message)):
            prune({"w": DENSE}, 0.5, Pruner(name), evidence=evidence)


OTHER_LEAVES = {"w": jnp.ones((6, 7)), "x": jnp.ones(3)}


@pytest.mark.parametrize(
    ("name", "evidence", "message"),
    [
        ("snip", Evidence(grads={"x": 1.0}), r"evidence.grads .* different leaves: \['w', 'x'\]"),
        ("learned", Evidence(scores=OTHER_LEAVES), r"evidence.scores .* different leaves: \['x'\]"),
        (
            "learned",
            Evidence(scores={"w": jnp.ones((6, 8))}),
            r"evidence.scores at 'w' has shape \(6, 8\), which does not broadcast to \(6, 7\)",
        ),
        (Criterion("own", lambda params, evidence: {}), Evidence(), r"'own' .* leaves: \['w'\]"),
    ],
)
def test_evidence_of_another_network_is_named(name, evidence, message):
    with pytest.raises(ValueError, match=message):
        prune({"w": DENSE}, 0.5, Pruner(name), evidence=evidence)


def test_own_criteria_take_part():
    largest_goes = Criterion("minus", lambda params, evidence: jax.tree.map(jnp.negative, params))
    mask = prune({"w": jnp.array([[1.0, 5.0, 3.0]])}, 1 / 3, Pruner(largest_goes))
    np.testing.assert_array_equal(mask["w"], [[True, False, True]])


def test_masked_weights_count_for_nothing():
    # Alone the second kernel's mean is higher; of what an earlier mask left, the first one's.
    params = {"w": jnp.array([[[1.0], [3.0]], [[1.0], [0.1]]])}
    current = {"w": jnp.array([[[True], [False]], [[True], [True]]])}
    fresh = prune(params, 0.5, Pruner(granularity="kernel"))
    later = prune(params, 0.5, Pruner(granularity="kernel"), current=current)
    np.testing.assert_array_equal(fresh["w"].ravel(), [False, True])
    np.testing.assert_array_equal(later["w"], [[[True], [False]], [[True], [False]]])


def test_names_are_those_of_the_registry():
    assert all(name == criterion.name for name, criterion in CRITERIA.items())
    assert len({id(c.score) for c in CRITERIA.values()}) == len(CRITERIA)
    for first, second in itertools.combinations(CRITERIA.values(), 2):
        assert first != second
