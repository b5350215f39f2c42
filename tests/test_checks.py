"""Numbers are taken or refused by a sentence that names argument, value and what is needed."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import checks


@pytest.mark.parametrize("value", [1, 7, np.int64(3), np.uint8(1)])
def test_integers_are_taken(value):
    checks.integer("steps", value, least=1)


@pytest.mark.parametrize("value", [0, -2, True, 1.0, 2.5, "3", None, np.int64(0), np.array([1])])
def test_what_is_no_such_integer_is_refused(value):
    with pytest.raises(ValueError, match=r"^steps is .*; an integer of at least 1 is needed"):
        checks.integer("steps", value, least=1)


@pytest.mark.parametrize(
    ("value", "within"),
    [
        (0, "[0, 1)"),
        (0.999, "[0, 1)"),
        (np.float32(0.5), "[0, 1)"),
        (jnp.float32(0.5), "[0, 1)"),
        (1, "(0, 1]"),
        (1e30, "(0, inf)"),
        (float("inf"), "(0, inf]"),
    ],
)
def test_numbers_in_the_interval_are_taken(value, within):
    checks.number("share", value, within=within)


@pytest.mark.parametrize(
    ("value", "within"),
    [
        (1, "[0, 1)"),
        (0, "(0, 1]"),
        (-1e-9, "[0, 1)"),
        (float("nan"), "[0, 1)"),
        (float("inf"), "(0, inf)"),
        (True, "[0, 1]"),
        ("0.5", "[0, 1)"),
        (None, "[0, 1)"),
        (1j, "[0, 1)"),
        (np.array([0.2, 0.3]), "[0, 1)"),
        ([0.5], "[0, 1)"),
    ],
)
def test_what_lies_elsewhere_is_refused(value, within):
    sentence = f"share is {value!r}; it must lie in {within}."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        checks.number("share", value, within=within)
