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
    with pytest.raises(ValueError, match="step is -1; an integer of at least 0"):
        schedules.one_shot(0.5, step=-1)


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


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({"end": 100.0}, r"end is 100\.0; an integer of at least"),
        ({"begin": None, "end": 9}, "begin is None; an integer of at least"),
        ({"end": 9, "frequency": 1.5}, r"frequency is 1\.5; an integer of at least"),
    ],
)
def test_steps_are_integers(steps, message):
    for schedule in (schedules.cubic, schedules.constant_rate):
        with pytest.raises(ValueError, match=message):
            schedule(0.5, **steps)


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


# -- other schedules -------------------------------------------------------------------------------


@given(
    target=st.floats(0, 0.999),
    begin=st.integers(0, 100),
    length=st.integers(0, 100),
    frequency=st.integers(1, 40),
)
def test_a_constant_rate_takes_the_same_share_of_the_rest_each_time(
    target, begin, length, frequency
):
    schedule = schedules.constant_rate(target, begin=begin, end=begin + length, frequency=frequency)
    steps, sparsities = zip(*schedule, strict=True)
    assert [*steps] == [*range(begin, begin + length, frequency), begin + length]
    assert sparsities[-1] == target
    left = [1.0, *(1 - s for s in sparsities)]
    shares = [1 - after / before for before, after in itertools.pairwise(left)]
    assert all(math.isclose(share, shares[0], rel_tol=1e-6, abs_tol=1e-9) for share in shares)


def test_a_fifth_goes_each_time():
    schedule = schedules.constant_rate(1 - 0.8**3, end=20, frequency=10)
    assert [step for step, _ in schedule] == [0, 10, 20]
    assert [s for _, s in schedule] == pytest.approx([0.2, 0.36, 0.488])


def test_compression_rates_one_after_another():
    schedule = schedules.iterative(begin=5, frequency=100)
    assert [step for step, _ in schedule] == [5, 105, 205, 305, 405, 505, 605]
    assert [s for _, s in schedule] == [0, 0.5, 0.75, 0.875, 0.9375, 0.96875, 0.984375]
    assert schedules.iterative([1.5, 3], frequency=1) == [(0, 1 - 1 / 1.5), (1, 1 - 1 / 3)]


def test_phases_alternate_and_the_last_one_is_sparse():
    schedule = schedules.alternating(0.9, begin=10, end=50, sparse=10, dense=5)
    assert schedule == [(10, 0.9), (20, 0.0), (25, 0.9), (35, 0.0), (40, 0.9)]
    schedule = schedules.alternating(0.9, begin=10, end=40, sparse=10, dense=10)
    assert schedule == [(10, 0.9), (20, 0.0), (30, 0.9)]
    schedule = schedules.alternating(0.9, begin=0, end=37, sparse=10)
    assert schedule == [(0, 0.9), (10, 0.0), (20, 0.9), (30, 0.0), (37, 0.9)]
    assert schedules.alternating(0.9, begin=3, end=3, sparse=1) == [(3, 0.9)]


def test_schedules_by_name():
    for name, options in {
        "one_shot": {"sparsity": 0.5, "step": 3},
        "cubic": {"sparsity": 0.5, "end": 200},
        "constant_rate": {"sparsity": 0.5, "end": 200},
        "iterative": {"rates": [2, 4], "frequency": 5},
        "alternating": {"sparsity": 0.5, "end": 9, "sparse": 2},
    }.items():
        assert schedules.schedule(name, **options) == getattr(schedules, name)(**options)
    with pytest.raises(ValueError, match=r"Unknown schedule 'cubik'\. Did you mean 'cubic'"):
        schedules.schedule("cubik")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("constant_rate", {"sparsity": 1.0, "end": 5}, r"sparsity is 1\.0"),
        ("constant_rate", {"sparsity": 0.5, "begin": 5, "end": 4}, "begin is 5 and end is 4"),
        ("constant_rate", {"sparsity": 0.5, "end": 4, "frequency": 0}, "frequency is 0"),
        ("iterative", {"rates": [], "frequency": 1}, r"rates is \[\]"),
        ("iterative", {"rates": [0.5, 2], "frequency": 1}, r"rates is \[0\.5, 2\]"),
        ("iterative", {"rates": [4, 2], "frequency": 1}, r"rates is \[4, 2\]"),
        ("iterative", {"rates": [1, math.inf], "frequency": 1}, "rates is"),
        ("iterative", {"begin": -1, "frequency": 1}, "begin is -1"),
        ("iterative", {"frequency": 0}, "frequency is 0"),
        ("alternating", {"sparsity": 90, "end": 5, "sparse": 1}, "sparsity is 90"),
        ("alternating", {"sparsity": 0.5, "end": 5, "sparse": 0}, "sparse is 0"),
        ("alternating", {"sparsity": 0.5, "end": 5, "sparse": 1, "dense": 0}, "dense is 0"),
    ],
)
def test_other_impossible_values_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        schedules.schedule(name, **options)
