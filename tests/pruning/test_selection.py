"""Exact counts with ties, against a stable sort in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunejax.pruning import selection

compiled = jax.jit(selection.keep_all_but_lowest)
SPECIAL = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, 1e-45, -1e-45, 1e-38, 3.4e38, -3.4e38]

# Few lengths, so that few programs are compiled; few values, so that ties are common.
values = st.one_of(
    st.sampled_from(SPECIAL), st.integers(-2, 2), st.floats(width=32, allow_nan=False)
)
scores = st.sampled_from([1, 2, 7, 20]).flatmap(lambda n: st.lists(values, min_size=n, max_size=n))


def reference(scores, count):
    keep = np.ones(len(scores), bool)
    keep[np.argsort(scores, kind="stable")[:count]] = False  # -0.0 and 0.0 are equal to a sort
    return keep


@settings(max_examples=200, deadline=None)
@given(scores, st.data())
def test_removes_what_a_stable_sort_puts_first(scores, data):
    scores = np.array(scores, np.float32)
    count = data.draw(st.integers(0, len(scores)))
    keep = compiled(jnp.asarray(scores), count)
    assert keep.dtype == bool
    np.testing.assert_array_equal(keep, reference(scores, count))


@pytest.mark.parametrize("run", [selection.keep_all_but_lowest, compiled], ids=["eager", "jit"])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 11])
def test_special_values_alone(run, count):
    scores = np.array(SPECIAL, np.float32)
    np.testing.assert_array_equal(run(jnp.asarray(scores), count), reference(scores, count))


@pytest.mark.parametrize("run", [selection.keep_all_but_lowest, compiled], ids=["eager", "jit"])
def test_both_zeros_are_the_same_score(run):
    zeros = jnp.array([0.0, -0.0, 1.0, -0.0, 0.0])
    np.testing.assert_array_equal(run(zeros, 2), [False, False, True, True, True])


@pytest.mark.parametrize("count", [0, 1, 317, 999, 1000])
@pytest.mark.parametrize("value", [0.0, -np.inf, np.inf, 0.25])
def test_all_equal_go_by_index(value, count):
    keep = compiled(jnp.full(1000, value), count)
    np.testing.assert_array_equal(keep, np.arange(1000) >= count)


@pytest.mark.parametrize("count", [0, 1, 150_000, 299_999, 300_000])
def test_the_count_is_exact_for_many_scores_with_many_ties(count):
    rng = np.random.default_rng(0)
    scores = (np.round(rng.normal(size=300_000) * 200) / 200).astype(np.float32)
    keep = np.asarray(compiled(jnp.asarray(scores), count))
    assert keep.sum() == 300_000 - count
    np.testing.assert_array_equal(keep, reference(scores, count))
