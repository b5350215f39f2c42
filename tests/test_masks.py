"""The laws of masks, on random trees, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunejax import masks, trees

# A pool, for each new shape is compiled.
SHAPES = [(), (3,), (2, 3), (1, 1), (3, 1, 2), (3, 3, 1, 4), (2, 1, 2, 3)]


@st.composite
def params_with_masks(draw, number_of_masks=1):
    """A tree of one to three leaves of rank 0 to 4, and masks that broadcast against it."""
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def random_mask():
        leaves = []
        for shape in shapes:
            cut = draw(st.sampled_from(["scalar", "filter", "full"]))
            mask_shape = {
                "scalar": (),
                "filter": (*[1] * (len(shape) - 1), *shape[-1:]),
                "full": shape,
            }[cut]
            leaves.append(jnp.asarray(rng.random(mask_shape) < 0.5))
        return nest(leaves)

    params = nest([jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes])
    return params, *(random_mask() for _ in range(number_of_masks))


def nest(leaves):
    """Dictionaries, lists and tuples all occur."""
    return {"first": {"w": leaves[0]}, "rest": [tuple(leaves[1:2]), *leaves[2:]]}


def full(params, mask):
    """The mask of each leaf in the leaf's full shape."""
    return [
        np.broadcast_to(m, p.shape)
        for p, m in zip(jax.tree.leaves(params), jax.tree.leaves(mask), strict=True)
    ]


@settings(max_examples=50, deadline=None)
@given(params_with_masks())
def test_apply_zeroes_exactly_what_is_masked_and_is_idempotent(case):
    params, mask = case
    once = masks.apply(params, mask)
    for p, kept, out in zip(
        jax.tree.leaves(params), full(params, mask), jax.tree.leaves(once), strict=True
    ):
        np.testing.assert_array_equal(out, np.where(kept, p, 0))
        assert out.dtype == p.dtype
    jax.tree.map(np.testing.assert_array_equal, masks.apply(once, mask), once)


@settings(max_examples=50, deadline=None)
@given(params_with_masks())
def test_kept_counts_what_numpy_counts(case):
    params, mask = case
    expected = [int(kept.sum()) for kept in full(params, mask)]
    counts = masks.kept(params, mask)
    assert list(counts.values()) == expected
    assert list(counts) == list(trees.flatten(params))

    everything = tuple(counts)
    numbers = sum(p.size for p in jax.tree.leaves(params))
    assert masks.density(params, mask, everything) == sum(expected) / numbers


@settings(max_examples=50, deadline=None)
@given(params_with_masks(number_of_masks=2))
def test_intersection_keeps_what_both_keep(case):
    params, first, second = case
    both = masks.intersect(first, second)
    masks.validate(params, both)
    for one, other, out in zip(
        full(params, first), full(params, second), full(params, both), strict=True
    ):
        np.testing.assert_array_equal(out, one & other)


PARAMS = {"a": jnp.ones((2, 3)), "b": {"c": jnp.ones(4)}}


@pytest.mark.parametrize("use", ["apply", "kept", "density"])
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"a": jnp.array(True)}, r"mask and parameters have different leaves: \['b/c'\]"),
        (
            {"a": jnp.ones((2, 4), bool), "b": {"c": jnp.array(True)}},
            r"mask at 'a' has shape \(2, 4\), which does not broadcast to \(2, 3\)",
        ),
    ],
)
def test_a_mask_of_another_structure_is_named(use, mask, message):
    with pytest.raises(ValueError, match=message):
        getattr(masks, use)(PARAMS, mask)


@pytest.mark.parametrize("use", ["apply", "kept", "density"])
@pytest.mark.parametrize("leaf", [jnp.full((2, 3), 0.5), jnp.ones((2, 3), jnp.int32)])
def test_a_mask_that_is_not_boolean_is_named(use, leaf):
    mask = {"a": leaf, "b": {"c": jnp.array(True)}}
    with pytest.raises(ValueError, match=f"mask at 'a' has dtype {leaf.dtype}; it must be bool"):
        getattr(masks, use)(PARAMS, mask)


def test_masks_of_different_structures_or_shapes_have_no_intersection():
    with pytest.raises(ValueError, match=r"different leaves: \['b/c'\]"):
        masks.intersect(masks.dense(PARAMS), {"a": jnp.array(True)})
    with pytest.raises(ValueError, match=r"masks at 'a' have the shapes \(2, 3\) and \(3, 2\)"):
        masks.intersect({"a": jnp.ones((2, 3), bool)}, {"a": jnp.ones((3, 2), bool)})


def test_of_no_weights_all_are_kept():
    biases = {"b": jnp.ones(3), "z": jnp.ones((0, 2))}
    assert masks.density(biases, masks.dense(biases)) == 1.0
    with pytest.raises(ValueError, match="paths has 'c', which is none of"):
        masks.density(biases, masks.dense(biases), ("c",))


def test_the_dense_mask_keeps_everything():
    params = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.array([-0.0, jnp.inf])}
    mask = masks.dense(params)
    assert [leaf.shape for leaf in jax.tree.leaves(mask)] == [(), ()]
    jax.tree.map(np.testing.assert_array_equal, masks.apply(params, mask), params)
    assert masks.density(params, mask) == 1


def test_a_masked_infinity_or_nan_becomes_zero():
    params = {"w": jnp.array([jnp.inf, jnp.nan, -jnp.inf, 2.0])}
    mask = {"w": jnp.array([False, False, False, True])}
    np.testing.assert_array_equal(masks.apply(params, mask)["w"], [0, 0, 0, 2])


def test_density_counts_weights_that_were_never_candidates_but_no_biases():
    params = {
        "conv": {"kernel": jnp.ones((3, 3, 1, 4)), "bias": jnp.ones(4)},
        "dense": {"kernel": jnp.ones((8, 8))},
    }
    mask = masks.dense(params)
    mask["conv"]["kernel"] = jnp.array([True, False, False, False]).reshape(1, 1, 1, 4)
    mask["conv"]["bias"] = jnp.zeros(4, bool)
    assert masks.kept(params, mask) == {"conv/bias": 0, "conv/kernel": 9, "dense/kernel": 64}
    assert masks.density(params, mask) == (9 + 64) / (36 + 64)
    assert masks.density(params, mask, ("conv/kernel",)) == 0.25
    assert masks.nominal_density(params, mask) == 0.25
    assert masks.nominal_density(params, masks.dense(params)) == 1
    gone = masks.dense(params) | {"dense": {"kernel": jnp.array(False)}}
    assert masks.nominal_density(params, gone) == 0
    # Nor biases with an axis of heads.
    params["dense"]["bias"], mask["dense"]["bias"] = jnp.ones((2, 4)), jnp.array(True)
    assert masks.density(params, mask) == (9 + 64) / (36 + 64)


VALID = {"conv": {"kernel": jnp.ones((2, 2, 1, 3)), "bias": jnp.ones(3)}}


@pytest.mark.parametrize(
    ("kernel_mask", "message"),
    [
        (jnp.ones((2, 2, 1, 3)), "'conv/kernel' has dtype float32"),
        (1, "'conv/kernel' has dtype int32"),
        (jnp.ones((2, 2, 3, 3), bool), r"'conv/kernel' has shape \(2, 2, 3, 3\)"),
        (jnp.ones((1, 1, 1, 2), bool), r"'conv/kernel' has shape \(1, 1, 1, 2\)"),
        (jnp.ones(3, bool), r"'conv/kernel' has shape \(3,\)"),
    ],
)
def test_validate_names_the_leaf_that_does_not_fit(kernel_mask, message):
    with pytest.raises(ValueError, match=message):
        masks.validate(VALID, {"conv": {"kernel": kernel_mask, "bias": jnp.array(True)}})


def test_validate_names_missing_and_surplus_leaves():
    mask = {"conv": {"kernel": jnp.array(True), "scale": jnp.array(True)}}
    with pytest.raises(ValueError, match=r"\['conv/bias', 'conv/scale'\]"):
        masks.validate(VALID, mask)


@pytest.mark.parametrize("mask", [True, np.True_, np.ones((1, 1, 1, 3), bool)])
def test_validate_accepts_plain_python_and_numpy_booleans(mask):
    masks.validate(VALID, {"conv": {"kernel": mask, "bias": True}})
