"""The cubic schedule against its closed form."""

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunejax.pruning import schedules

rates = st.floats(0, 1, exclude_max=True)


def test_one_shot_is_one_change():
    assert list(schedules.one_shot(0.9)) == [(0, 0.9)]
    assert list(schedules.one_shot(0.5, step=7)) == [(7, 0.5)]


def test_cubic_by_hand():
    # left = 1, 3/4, 1/2, 1/4, 0; sparsity = 0.64 (1 - left^3) with 64 left^3 = 64, 27, 8, 1, 0
    schedule = schedules.cubic(0.64, begin=100, end=500, frequency=100)
    assert [step for step, _ in schedule] == [100, 200, 300, 400, 500]
    assert [s for _, s in schedule] == pytest.approx([0, 0.37, 0.56, 0.63, 0.64], abs=1e-15)


@given(
    target=rates,
    initial=rates,
    begin=st.integers(0, 1000),
    length=st.integers(0, 1000),
    frequency=st.integers(1, 400),
)
def test_cubic_is_the_closed_form_and_ends_on_the_target(target, initial, begin, length, frequency):
    initial = min(initial, target)
    end = begin + length
    schedule = schedules.cubic(target, begin=begin, end=end, frequency=frequency, initial=initial)
    steps, sparsities = zip(*schedule, strict=True)

    assert steps[-1] == end
    assert sparsities[-1] == target  # exactly
    assert set(steps) == {*range(begin, end, frequency), end}
    assert list(steps) == sorted(set(steps))
    assert all(a <= b + 1e-15 for a, b in itertools.pairwise(sparsities))
    for step, sparsity in schedule[:-1]:
        left = 1 - Fraction(step - begin, length)  # exact, unlike the implementation
        exact = Fraction(target) + (Fraction(initial) - Fraction(target)) * left**3
        assert math.isclose(sparsity, exact, rel_tol=1e-12, abs_tol=1e-14)


def test_a_schedule_without_length_prunes_at_once():
    assert list(schedules.cubic(0.8, begin=3, end=3)) == [(3, 0.8)]


@pytest.mark.parametrize("sparsity", [1.0, -0.1, 90, math.nan])
def test_a_sparsity_that_is_no_share_is_named(sparsity):
    with pytest.raises(ValueError, match=rf"sparsity is {sparsity}; .*\[0, 1\)"):
        schedules.one_shot(sparsity)
    with pytest.raises(ValueError, match=rf"sparsity is {sparsity}; .*\[0, 1\)"):
        schedules.cubic(sparsity, end=10)
    with pytest.raises(ValueError, match=rf"{sparsity}; .*\[0, 1\)"):
        schedules.cubic(0.5, end=10, initial=sparsity)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"begin": 5, "end": 4}, "begin is 5 and end is 4"),
        ({"begin": -1, "end": 4}, "begin is -1"),
        ({"end": 4, "frequency": 0}, "frequency is 0"),
    ],
)
def test_impossible_steps_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        schedules.cubic(0.5, **options)


def test_an_initial_sparsity_above_the_final_one_is_refused():
    with pytest.raises(ValueError, match=r"initial is 0\.6; masks are nested, so at most 0\.5"):
        schedules.cubic(0.5, end=10, initial=0.6)
