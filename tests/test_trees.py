"""Paths, and which leaves are weights."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunejax import trees

HAIKU = {
    "linear": {"w": jnp.ones((2, 3)), "b": jnp.ones(3)},
    "net/~/conv_1": {"w": jnp.ones((3, 3, 1, 2)), "b": jnp.ones(2)},
    "batch_norm": {"scale": jnp.ones(2), "count": jnp.ones(())},
}
NESTED = [(jnp.ones((2, 2)), [jnp.ones(2)]), {"last": jnp.ones((2, 1))}]


class _Pair(NamedTuple):
    c: float


leaves = st.integers(0, 9).map(jnp.int32)
nested_trees = st.recursive(
    leaves,
    lambda children: st.one_of(
        st.lists(children, max_size=3),
        st.tuples(children, children),
        st.dictionaries(st.sampled_from(["a", "b", "kernel"]), children, max_size=3),
    ),
    max_leaves=8,
)


def test_paths_join_the_keys_of_dictionaries_and_the_places_in_sequences():
    assert list(trees.flatten(HAIKU)) == [
        "batch_norm/count",
        "batch_norm/scale",
        "linear/b",
        "linear/w",
        "net/~/conv_1/b",
        "net/~/conv_1/w",
    ]
    assert list(trees.flatten(NESTED)) == ["0/0", "0/1/0", "1/last"]


@settings(max_examples=50, deadline=None)
@given(nested_trees)
def test_flatten_has_the_leaves_in_order_and_unflatten_undoes_it(tree):
    flat = trees.flatten(tree)
    assert list(flat.values()) == jax.tree.leaves(tree)
    again = trees.unflatten(tree, {path: leaf + 1 for path, leaf in flat.items()})
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    assert jax.tree.leaves(again) == [leaf + 1 for leaf in jax.tree.leaves(tree)]


@settings(max_examples=50, deadline=None)
@given(nested_trees)
def test_map_with_path_gives_each_leaf_its_own_path(tree):
    flat = trees.flatten(tree)
    twice = jax.tree.map(lambda leaf: 2 * int(leaf), tree)
    seen = trees.map_with_path(lambda path, *given: (flat[path], *given), tree, twice)
    for by_path, leaf, doubled in jax.tree.structure(tree).flatten_up_to(seen):
        assert by_path is leaf
        assert doubled == 2 * leaf


def test_size_counts_numbers():
    assert trees.size(HAIKU) == 6 + 3 + 18 + 2 + 2 + 1
    assert trees.size({}) == 0


def test_weights_are_the_leaves_of_rank_two_or_more():
    assert trees.prunable(HAIKU) == ("linear/w", "net/~/conv_1/w")
    assert trees.prunable(NESTED) == ("0/0", "1/last")


@pytest.mark.parametrize("name", ["bias", "scale"])
def test_biases_and_scales_are_no_weights_whatever_their_rank(name):
    params = {
        "layer": {"kernel": jnp.ones((2, 3, 4)), name: jnp.ones((3, 4))},
        name: jnp.ones((2, 2)),
    }
    assert trees.prunable(params) == ("layer/kernel",)
    # It is the leaf's own name that counts, and the whole of it.
    assert trees.prunable({name: {"w": jnp.ones((2, 2))}}) == (f"{name}/w",)
    assert trees.prunable({f"my_{name}": jnp.ones((2, 2))}) == (f"my_{name}",)


class _Cell(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.LayerNorm()(nn.Dense(4)(x)), None


class _Looped(nn.Module):
    @nn.compact
    def __call__(self, x):
        stacked = nn.scan(_Cell, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return nn.MultiHeadDotProductAttention(2)(stacked()(x, None)[0])


def test_the_weights_of_attention_and_of_stacked_layers_are_their_kernels():
    shapes = jax.eval_shape(lambda: _Looped().init(jax.random.key(0), jnp.ones((1, 5, 4))))
    leaves = trees.flatten(shapes["params"])
    assert leaves["MultiHeadDotProductAttention_0/query/bias"].shape == (2, 2)
    assert leaves["Scan_Cell_0/Dense_0/bias"].shape == (3, 4)
    assert leaves["Scan_Cell_0/LayerNorm_0/scale"].shape == (3, 4)
    kernels = tuple(path for path in leaves if path.endswith("/kernel"))
    assert len(kernels) == 5
    assert trees.prunable(shapes["params"]) == kernels


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (("*conv*",), (), ("net/~/conv_1/w",)),
        (("*",), ("*conv*",), ("linear/w",)),
        (("linear/w", "net/*"), (), ("linear/w", "net/~/conv_1/w")),
        (("*",), ("*",), ()),
        (("l?near/[vw]",), (), ("linear/w",)),
    ],
)
def test_patterns_choose_among_the_weights(include, exclude, expected):
    assert trees.prunable(HAIKU, include, exclude) == expected


@pytest.mark.parametrize("pattern", ["*Conv*", "linear/b", "linear"])
@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_a_pattern_that_matches_no_weight_is_an_error_that_lists_the_weights(pattern, argument):
    with pytest.raises(ValueError, match=r"matches none.*'linear/w', 'net/~/conv_1/w'") as caught:
        trees.prunable(HAIKU, **{argument: (pattern,)})
    assert repr(pattern) in str(caught.value)


def test_shapes_are_enough():
    shapes = jax.eval_shape(lambda: HAIKU)
    assert trees.prunable(shapes) == trees.prunable(HAIKU)
    assert trees.size(shapes) == trees.size(HAIKU)


def test_arrays_of_numpy_are_leaves_too():
    assert trees.prunable({"w": np.ones((2, 2)), "b": np.ones(2)}) == ("w",)


def test_a_pattern_may_be_given_alone():
    assert trees.prunable(HAIKU, "linear/w") == ("linear/w",)
    assert trees.prunable(HAIKU, exclude="linear/w") == ("net/~/conv_1/w",)


def test_leaves_without_numbers_are_no_weights():
    assert trees.prunable({"w": np.ones((2, 2)), "z": np.ones((0, 5))}) == ("w",)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": 1.0}, r"it and parameters have different leaves: \['b/c'\]"),
        ({"a": np.ones((2, 3)), "b": {"c": np.ones(3)}}, r"it at 'b/c' has shape \(3,\).*\(2,\)"),
        ({"a": 1.0, "b": {"c": np.ones((1, 2))}}, r"it at 'b/c' has shape \(1, 2\)"),
        ({"a": np.ones((2, 3)), "b": _Pair(1.0)}, "different containers"),
    ],
)
def test_a_tree_of_another_structure_is_named(tree, message):
    params = {"a": np.ones((2, 3)), "b": {"c": np.ones(2)}}
    with pytest.raises(ValueError, match=message):
        trees.require_like("it", tree, params)


def test_what_broadcasts_is_like_the_parameters():
    params = {"a": np.ones((2, 3)), "b": {"c": np.ones(2)}}
    trees.require_like("it", {"a": np.ones((1, 3)), "b": {"c": 1.0}}, params)
    trees.require_like("it", jax.eval_shape(lambda: params), params)


def test_leaves_can_be_dropped_and_nested_again():
    tree = {"a": {"b": {"c": 1, "d": 2}, "e": {"f": 3}}, "g": 4}
    assert trees.nested(trees.flatten(tree)) == tree
    assert trees.drop(tree, ["a/b/c", "a/e/f"]) == {"a": {"b": {"d": 2}}, "g": 4}
    # Haiku's names have a separator of their own.
    assert trees.drop({"net/~/a": {"w": 1, "b": 2}, "c": {"w": 3}}, ["net/~/a/b", "c/w"]) == {
        "net/~/a": {"w": 1}
    }
    assert trees.drop({"a": {"b": None}, "c": 1, "d": None}, []) == {"c": 1}
