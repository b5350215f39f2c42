"""Which weights go: exact counts, rankings by numpy, nesting, patterns, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prunejax import masks, trees
from prunejax.pruning import Criterion, Pruner, prune

SPARSITIES = [0.0, 0.01, 0.1, 0.37, 0.5, 0.9, 0.95, 0.999]


def network(seed=0):
    """A small network in Flax's layout, with ties among its weights."""
    rng = np.random.default_rng(seed)
    shapes = {
        "Conv_0": {"kernel": (3, 3, 1, 5), "bias": (5,)},
        "Conv_1": {"kernel": (3, 3, 5, 7), "bias": (7,)},
        "BatchNorm_0": {"scale": (7,)},
        "Dense_0": {"kernel": (28, 11), "bias": (11,)},
    }
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape).round(1), jnp.float32),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


PARAMS = network()
WEIGHTS = ("Conv_0/kernel", "Conv_1/kernel", "Dense_0/kernel")
OTHERS = ("BatchNorm_0/scale", "Conv_0/bias", "Conv_1/bias", "Dense_0/bias")


def arrays(tree):
    return {path: np.asarray(leaf) for path, leaf in trees.flatten(tree).items()}


def lowest(scores, count):
    """Keeps all but the `count` lowest, ties by index."""
    keep = np.ones(scores.size, bool)
    keep[np.argsort(scores.ravel(), kind="stable")[:count]] = False
    return keep.reshape(scores.shape)


def units_removed(mask, paths):
    return {path: int((~arrays(mask)[path]).sum()) for path in paths}


def assert_nested(earlier, later):
    for before, after in zip(jax.tree.leaves(earlier), jax.tree.leaves(later), strict=True):
        assert not np.any(np.asarray(after) & ~np.asarray(before))


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_uniform_removes_the_lowest_of_each_layer(sparsity):
    params, mask = arrays(PARAMS), arrays(prune(PARAMS, sparsity, Pruner(guard=False)))
    for path in WEIGHTS:
        count = round(sparsity * params[path].size)
        assert (~mask[path]).sum() == count
        np.testing.assert_array_equal(mask[path], lowest(np.abs(params[path]), count))
    for path in OTHERS:
        assert mask[path].shape == ()
        assert mask[path]


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_global_removes_the_lowest_of_all_layers_together(sparsity):
    pruner = Pruner(allocation="global", guard=False)
    params, mask = arrays(PARAMS), arrays(prune(PARAMS, sparsity, pruner))
    scores = np.concatenate([np.abs(params[path]).ravel() for path in WEIGHTS])
    keep = np.concatenate([mask[path].ravel() for path in WEIGHTS])
    assert (~keep).sum() == round(sparsity * scores.size)
    np.testing.assert_array_equal(keep, lowest(scores, round(sparsity * scores.size)))
    for path in OTHERS:
        assert mask[path].shape == ()


def lamp(scores):
    """As the paper has it (Lee et al. 2021, equation 2), in double precision."""
    squares = np.square(scores.astype(np.float64)).ravel()
    return np.array([s / squares[squares >= s].sum() if s else 0.0 for s in squares])


@pytest.mark.parametrize("granularity", ["weight", "filter"])
@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.83])
def test_lamp_ranks_all_layers_together_by_each_units_share_of_what_is_as_good(
    sparsity, granularity
):
    rng = np.random.default_rng(3)  # without ties, and layers of different scale
    params = {
        f"Conv_{i}": {"kernel": jnp.asarray(scale * rng.normal(size=shape), jnp.float32)}
        for i, (scale, shape) in enumerate([(1e-3, (3, 3, 2, 8)), (1, (2, 2, 4, 6)), (50, (9, 5))])
    }
    paths = list(params)[: 3 if granularity == "weight" else 2]
    scores = [np.abs(np.asarray(params[path]["kernel"])) for path in paths]
    if granularity == "filter":
        scores = [of.mean(axis=(0, 1, 2)) for of in scores]
    expected = np.concatenate([lamp(of) for of in scores])
    pruner = Pruner(granularity=granularity, allocation="lamp", guard=False)
    mask = prune(params, sparsity, pruner)
    found = np.concatenate([np.asarray(mask[path]["kernel"]).ravel() for path in paths])
    np.testing.assert_array_equal(found, lowest(expected, round(sparsity * expected.size)))


def test_under_lamp_no_score_below_zero_is_better_than_one_above():
    scores = {"a": jnp.array([[-3.0, -1.0, 2.0, 0.0]]), "b": jnp.array([[-2.0, 1.0, 0.5, 0.1]])}
    given_ = Criterion("given", lambda params, evidence: scores)
    mask = prune(scores, 4 / 8, Pruner(given_, allocation="lamp", guard=False))
    np.testing.assert_array_equal(mask["a"], [[False, False, True, False]])
    np.testing.assert_array_equal(mask["b"], [[False, True, True, True]])


def test_the_count_is_that_of_the_double_not_of_the_float32_product():
    n = 1_572_874
    assert round(float(np.float32(0.9) * np.float32(n))) == round(0.9 * n) - 1
    removal = Pruner().removal({"w": jax.ShapeDtypeStruct((n, 1), jnp.float32)}, 0.9)
    assert removal == {("w",): round(0.9 * n)}


@settings(max_examples=12, deadline=None)
@given(
    sparsity=st.floats(0, 1, exclude_max=True),
    allocation=st.sampled_from(["uniform", "global"]),
    granularity=st.sampled_from(["weight", "filter"]),
    criterion=st.sampled_from(["magnitude", "random"]),
)
def test_counts_are_exact_for_every_combination(sparsity, allocation, granularity, criterion):
    pruner = Pruner(criterion, granularity, allocation, guard=False)
    mask = prune(PARAMS, sparsity, pruner)
    masks.validate(PARAMS, mask)
    paths = WEIGHTS if granularity == "weight" else WEIGHTS[:2]
    sizes = [(leaf := arrays(mask)[path]).size for path in paths]
    removed = list(units_removed(mask, paths).values())
    if allocation == "uniform":
        assert removed == [round(sparsity * n) for n in sizes]
    else:
        assert sum(removed) == round(sparsity * sum(sizes))
    assert leaf.dtype == bool


@settings(max_examples=12, deadline=None)
@given(
    sparsity=st.floats(0, 1, exclude_max=True),
    allocation=st.sampled_from(["uniform", "global"]),
    granularity=st.sampled_from(["weight", "filter"]),
    criterion=st.sampled_from(["magnitude", "random"]),
)
@example(sparsity=0.99, allocation="uniform", granularity="weight", criterion="magnitude")
@example(sparsity=0.999, allocation="uniform", granularity="weight", criterion="random")
@example(sparsity=0.95, allocation="global", granularity="filter", criterion="magnitude")
def test_pruning_twice_is_pruning_once_and_the_guard_moves_no_count(
    sparsity, allocation, granularity, criterion
):
    pruner = Pruner(criterion, granularity, allocation)
    mask = prune(PARAMS, sparsity, pruner)
    jax.tree.map(np.testing.assert_array_equal, prune(PARAMS, sparsity, pruner, current=mask), mask)

    paths = WEIGHTS if granularity == "weight" else WEIGHTS[:2]
    sizes = np.array([arrays(mask)[path].size for path in paths])
    removed = np.array(list(units_removed(mask, paths).values()))
    assert np.all(removed < sizes)  # one of each layer stays
    if allocation == "uniform":
        wanted = np.array([round(sparsity * int(n)) for n in sizes])
        others = np.arange(len(sizes)) != np.argmax(sizes)
        # What a layer cannot lose the largest one does.
        np.testing.assert_array_equal(removed[others], np.minimum(wanted, sizes - 1)[others])
        total = wanted.sum()
    else:
        total = round(sparsity * int(sizes.sum()))
    assert removed.sum() == min(total, (sizes - 1).sum())


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.75])
def test_filters_go_by_their_mean_magnitude_and_dense_layers_stay(sparsity, allocation):
    params = arrays(PARAMS)
    mask = arrays(prune(PARAMS, sparsity, Pruner(granularity="filter", allocation=allocation)))
    means = [np.abs(params[path]).mean(axis=(0, 1, 2)) for path in WEIGHTS[:2]]
    assert [mask[path].shape for path in WEIGHTS[:2]] == [(1, 1, 1, 5), (1, 1, 1, 7)]
    kept = [mask[path].ravel() for path in WEIGHTS[:2]]
    if allocation == "uniform":
        for scores, keep in zip(means, kept, strict=True):
            np.testing.assert_array_equal(keep, lowest(scores, round(sparsity * scores.size)))
    else:
        expected = lowest(np.concatenate(means), round(sparsity * 12))
        np.testing.assert_array_equal(np.concatenate(kept), expected)
    for path in ("Dense_0/kernel", *OTHERS):
        assert mask[path].shape == ()
        assert mask[path]


def test_the_mean_of_a_filter_counts_not_its_sum():
    # Sums would rank the small filters of the first layer lowest: 1 * 4 < 0.5 * 36.
    params = {"a": jnp.full((2, 2, 1, 2), 1.0), "b": jnp.full((3, 3, 4, 2), 0.5)}
    mask = prune(params, 0.5, Pruner(granularity="filter", allocation="global", guard=False))
    assert units_removed(mask, ("a", "b")) == {"a": 0, "b": 2}


def test_one_and_three_dimensional_convolutions_have_filters_too():
    params = {
        "one": jnp.ones((3, 2, 4)),
        "three": jnp.ones((2, 2, 2, 1, 4)),
        "fc": jnp.ones((4, 4)),
    }
    mask = prune(params, 0.5, Pruner(granularity="filter"))
    assert mask["one"].shape == (1, 1, 4)
    assert mask["three"].shape == (1, 1, 1, 1, 4)
    assert mask["fc"].shape == ()


@pytest.mark.parametrize("allocation", ["uniform", "global", "lamp"])
@pytest.mark.parametrize("granularity", ["weight", "filter"])
@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_masks_are_nested_along_a_schedule_although_weights_and_keys_change(
    criterion, granularity, allocation
):
    pruner = Pruner(criterion, granularity, allocation)
    mask = prune(network(0), 0.1, pruner)
    for step, sparsity in enumerate([0.3, 0.3, 0.6, 0.9], start=1):
        later = prune(network(step), sparsity, pruner, key=jax.random.key(step), current=mask)
        assert_nested(mask, later)
        expected = sum(pruner.removal(PARAMS, sparsity).values())
        assert sum(units_removed(later, pruner.paths(PARAMS)).values()) == expected
        mask = later


def test_what_is_gone_stays_gone_at_a_lower_sparsity():
    current = prune(PARAMS, 0.9)
    again = prune(PARAMS, 0.2, current=current)
    jax.tree.map(np.testing.assert_array_equal, again, current)


def test_what_a_global_mask_took_stays_gone_under_uniform_rates():
    # Almost all of layer "a" is gone already, more than its uniform share.
    params = {"a": jnp.arange(1.0, 11).reshape(1, 10), "b": jnp.arange(100.0, 110).reshape(1, 10)}
    current = prune(params, 0.45, Pruner(allocation="global"))
    assert units_removed(current, ("a", "b")) == {"a": 9, "b": 0}
    later = prune(params, 0.5, Pruner(), current=current)
    assert_nested(current, later)
    assert units_removed(later, ("a", "b")) == {"a": 9, "b": 5}


@pytest.mark.parametrize("granularity", ["filter", "channel", "kernel"])
def test_random_units_go_as_often_from_large_layers_as_from_small_ones(granularity):
    """Means of 900 draws would hardly vary, and so stay in the one layer and go in the other."""
    params = {"wide": jnp.zeros((3, 3, 100, 100)), "narrow": jnp.zeros((1, 1, 100, 100))}
    pruner = Pruner("random", granularity=granularity, allocation="global")
    mask = arrays(prune(params, 0.2, pruner, key=jax.random.key(3)))
    units = 100**2 if granularity == "kernel" else 100
    deviation = np.sqrt(0.2 * 0.8 / units)
    for path in params:
        assert abs((~mask[path]).mean() - 0.2) < 3 * deviation


@pytest.mark.parametrize(
    ("granularity", "path"), [("channel", "conv"), ("row", "dense"), ("2:4", "dense")]
)
def test_units_of_inputs_are_refused_where_scores_tell_outputs_apart(granularity, path):
    params = {"conv": jnp.ones((3, 3, 4, 8)), "dense": jnp.ones((8, 4))}
    pruner = Pruner("geometric_median", granularity=granularity, include=path)
    with pytest.raises(
        ValueError, match=rf"granularity is '{granularity}'.*all inputs of '{path}'"
    ):
        prune(params, 0.5, pruner)


def test_one_input_alone_needs_not_be_told_apart():
    pruner = Pruner("geometric_median", granularity="channel", guard=False)
    mask = prune({"w": jnp.ones((3, 3, 1, 8))}, 0.0, pruner)
    assert mask["w"].shape == (1, 1, 1, 1)


def test_random_masks_are_a_function_of_the_key_and_the_path():
    pruner = Pruner(criterion="random")
    first, same, other = (
        arrays(prune(PARAMS, 0.5, pruner, key=jax.random.key(k))) for k in (1, 1, 2)
    )
    for path in WEIGHTS:
        np.testing.assert_array_equal(first[path], same[path])
        assert np.any(first[path] != other[path])
    # Renaming or adding other layers changes nothing for a layer of the same path.
    alone = {"Conv_1": {"kernel": PARAMS["Conv_1"]["kernel"]}}
    mask = arrays(prune(alone, 0.5, pruner, key=jax.random.key(1)))
    np.testing.assert_array_equal(mask["Conv_1/kernel"], first["Conv_1/kernel"])
    # Layers of one shape do not share their draws.
    twins = {"a": jnp.ones((9, 9)), "b": jnp.ones((9, 9))}
    mask = prune(twins, 0.5, pruner)
    assert np.any(np.asarray(mask["a"] != mask["b"]))


@pytest.mark.parametrize(
    ("patterns", "touched"),
    [
        ({"include": ["Conv_*"]}, WEIGHTS[:2]),
        ({"exclude": ["Dense_0/kernel"]}, WEIGHTS[:2]),
        ({"include": ["*_0/*"], "exclude": ["Dense*"]}, WEIGHTS[:1]),
    ],
)
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_patterns_say_what_is_touched(patterns, touched, allocation):
    pruner = Pruner(allocation=allocation, **patterns)
    assert pruner.paths(PARAMS) == touched
    mask = prune(PARAMS, 0.5, pruner)
    numbers = sum(arrays(PARAMS)[path].size for path in touched)
    removed = units_removed(mask, (*WEIGHTS, *OTHERS))
    assert sum(removed[path] for path in touched) == pytest.approx(numbers / 2, abs=len(touched))
    assert all(removed[path] == 0 for path in removed if path not in touched)


@pytest.mark.parametrize("patterns", [{"include": ["*Linear*"]}, {"exclude": ["Conv_2/*"]}])
def test_a_pattern_that_matches_nothing_is_an_error(patterns):
    (pattern,) = next(iter(patterns.values()))
    with pytest.raises(ValueError, match="matches none of the weights") as caught:
        prune(PARAMS, 0.5, Pruner(**patterns))
    assert repr(pattern) in str(caught.value)


@pytest.mark.parametrize("granularity", ["weight", "column", "2:4", "block4x4"])
@pytest.mark.parametrize(
    "patterns", [{"include": "Dense_0/*", "exclude": ("Dense*",)}, {"include": ()}]
)
@pytest.mark.parametrize("allocation", ["uniform", "global", "erk", "igq", {"*": 0.5}])
def test_patterns_that_leave_nothing_to_prune_are_an_error(granularity, patterns, allocation):
    if granularity != "2:4" or allocation in ("uniform", "global"):
        pruner = Pruner(granularity=granularity, allocation=allocation, **patterns)
        with pytest.raises(ValueError, match=r"include is \(.*\) and exclude \(.*\), which leaves"):
            prune(PARAMS, 0.5, pruner)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "magnitud"}, "Unknown criterion 'magnitud'. Did you mean 'magnitude'?"),
        ({"granularity": "filters"}, "Unknown granularity 'filters'. Did you mean 'filter'?"),
        ({"allocation": "globl"}, "Unknown allocation 'globl'. Did you mean 'global'?"),
    ],
)
def test_unknown_names_name_the_nearest(options, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        Pruner(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": ["magnitude"]}, r"Unknown criterion \['magnitude'\]"),
        ({"granularity": None}, "Unknown granularity None"),
        ({"allocation": None}, "allocation is None; it must be one of uniform, .* or a table"),
        ({"allocation": 0.5}, "allocation is 0.5; it must be one of"),
        ({"allocation": {"*": "dense"}}, "allocation is .*; it must be one of"),
    ],
)
def test_what_is_no_name_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        Pruner(**options)


def test_one_pattern_is_no_list_of_letters():
    assert Pruner(include="Conv_0/kernel") == Pruner(include=("Conv_0/kernel",))
    assert Pruner(exclude="Conv_*").paths(PARAMS) == WEIGHTS[2:]


def test_a_pattern_that_matches_only_weights_without_such_units_is_named():
    assert Pruner(granularity="filter").paths(PARAMS) == WEIGHTS[:2]
    pruner = Pruner(granularity="filter", include=("Conv_*", "Dense*"))
    message = r"'Dense_0/kernel' has rank 2, .*\('Dense\*' in include matches only such\)"
    with pytest.raises(ValueError, match=message):
        prune(PARAMS, 0.5, pruner)


@pytest.mark.parametrize(
    ("current", "message"),
    [
        ({"Conv_0": jnp.array(True)}, "mask and parameters have different leaves"),
        (
            {**masks.dense(PARAMS), "Dense_0": {"kernel": jnp.ones((2, 2), bool)}},
            "Dense_0",
        ),
    ],
)
def test_an_earlier_mask_of_another_network_is_named(current, message):
    with pytest.raises(ValueError, match=message):
        prune(PARAMS, 0.5, current=current)


@pytest.mark.parametrize("allocation", ["uniform", "global", "lamp", "erk", "igq"])
def test_leaves_without_numbers_lose_nothing(allocation):
    params = {"w": jnp.arange(1.0, 9).reshape(2, 4), "z": jnp.zeros((0, 5))}
    mask = prune(params, 0.5, Pruner(allocation=allocation))
    np.testing.assert_array_equal(mask["w"], [[False] * 4, [True] * 4])
    assert masks.kept(params, mask) == {"w": 4, "z": 0}


def test_fewer_rounds_than_one_are_refused():
    for rounds in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"rounds is {rounds}; an integer of at least 1"):
            prune({"w": jnp.ones((4, 2))}, 0.5, rounds=rounds)


def test_biases_and_normalisations_of_haiku_are_no_weights_in_the_rank_of_images():
    params = {
        "net/~/conv": {"w": jnp.ones((3, 3, 2, 4)), "b": jnp.ones((4, 1, 1))},
        "net/~/norm": {"scale": jnp.ones((1, 1, 1, 4)), "offset": jnp.zeros((1, 1, 1, 4))},
        "readout": {"w": jnp.ones((4, 1)), "b": jnp.ones(1)},
    }
    assert trees.weights(params) == ("net/~/conv/w", "readout/w")


@pytest.mark.parametrize("name", ["include", "exclude"])
@pytest.mark.parametrize("patterns", [None, 3, ("*", None)])
def test_what_is_no_pattern_is_refused(name, patterns):
    with pytest.raises(ValueError, match=r"include and exclude take patterns of paths such as"):
        Pruner(**{name: patterns})


@pytest.mark.parametrize("sparsity", [1.0, -0.01, 90, float("nan"), "0.5", None])
def test_a_sparsity_that_is_no_share_is_named(sparsity):
    with pytest.raises(ValueError, match=rf"sparsity is {sparsity!r}; .*\[0, 1\)"):
        prune(PARAMS, sparsity)


def test_pruners_are_equal_and_hash_by_their_choices():
    assert Pruner(include=["a", "b"]) == Pruner(include=("a", "b"))
    assert len({Pruner(), Pruner(include=["*"]), Pruner(criterion="random")}) == 2


def test_dictionaries_of_haiku():
    params = {
        "mlp/~/linear_0": {"w": jnp.arange(1.0, 7).reshape(2, 3), "b": jnp.zeros(3)},
        "linear": {"w": jnp.array([[-9.0, 0.5]]), "b": jnp.ones(2)},
    }
    mask = prune(params, 0.5, Pruner(allocation="global"))
    np.testing.assert_array_equal(mask["mlp/~/linear_0"]["w"], [[0, 0, 0], [1, 1, 1]])
    np.testing.assert_array_equal(mask["linear"]["w"], [[1, 0]])
    assert jax.tree.structure(mask) == jax.tree.structure(params)


def test_tuples_and_lists():
    params = ([jnp.array([[3.0, -1.0]]), jnp.ones(2)], (jnp.array([[2.0], [-4.0]]),))
    mask = prune(params, 0.5)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    np.testing.assert_array_equal(mask[0][0], [[1, 0]])
    np.testing.assert_array_equal(mask[1][0], [[0], [1]])


def test_the_mask_is_the_same_inside_jit_with_traced_counts():
    pruner = Pruner(allocation="global")
    removal = pruner.removal(PARAMS, 0.7)

    @functools.partial(jax.jit, static_argnums=0)
    def compiled(group, params, count):
        current = pruner.initial(params)
        return pruner.mask(params, current, {group: count})

    (group, count), *rest = removal.items()
    assert not rest
    traced = compiled(group, PARAMS, jnp.int32(count))
    jax.tree.map(np.testing.assert_array_equal, traced, prune(PARAMS, 0.7, pruner))


def test_a_mask_and_a_schedule_agree_on_density():
    mask = prune(PARAMS, 0.9, Pruner(allocation="global"))
    numbers = 45 + 315 + 308
    assert masks.density(PARAMS, mask) == (numbers - round(0.9 * numbers)) / numbers
