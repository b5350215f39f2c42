"""Which lanes are filled when, on the host alone."""

import numpy as np
import pytest

from prunejax.attacks.lanes import Lanes


def steps_of_all_lanes(needed: list[int], width: int, steps: int, chunk: int) -> tuple[int, int]:
    """How many steps the lanes make together until examples that need so many are done.

    And how often lanes are looked at.
    """
    lanes, total, looks = Lanes(len(needed), width, [steps]), 0, 0
    done = []
    while lanes.busy or lanes.queue:
        lanes.fill()
        made = lanes.until_next_look(chunk)
        end = np.array(needed)[np.maximum(lanes.example, 0)]
        lanes.advanced(made, np.clip(end - lanes.taken, 0, made))
        total += made
        leaving, _ = lanes.ended(lanes.taken >= end)
        if lanes.should_settle(leaving):
            looks += 1
            done += lanes.example[leaving].tolist()
            lanes.leave(leaving)
    assert sorted(done) == list(range(len(needed)))
    return total, looks


def test_a_lane_that_is_done_early_is_filled_while_the_others_go_on():
    """Of 8 lanes one is done at once; a ninth example takes its place after 100 steps or less."""
    total, looks = steps_of_all_lanes([1] + [1000] * 8, width=8, steps=1000, chunk=20)
    assert total <= 1100
    assert looks == 3  # the first one, the seven others, and the last


def test_a_lane_waits_where_no_example_does():
    assert steps_of_all_lanes([1] + [1000] * 7, width=8, steps=1000, chunk=20) == (1000, 1)


def test_few_lanes_wait_where_an_attack_is_short():
    """To fill a lane of 8 costs what one lane idles away in 80 steps."""
    total, looks = steps_of_all_lanes([1] + [60] * 15, width=8, steps=60, chunk=10)
    assert (total, looks) == (120, 2)


@pytest.mark.parametrize("seed", range(3))
def test_little_is_idle_in_a_long_attack(seed):
    """An eighth of the examples is lost early; lanes make a tenth more steps than are needed."""
    rng = np.random.default_rng(seed)
    needed = np.where(rng.random(793) < 1 / 8, rng.integers(1, 500, 793), 5000).tolist()
    total, _ = steps_of_all_lanes(needed, width=64, steps=5000, chunk=100)
    assert total <= 1.1 * sum(needed) / 64


@pytest.mark.parametrize(
    ("done_after", "looks", "then"),
    [(None, [10, 10, 20, 40, 20], 100), (25, [10, 10, 20, 10, 10, 20, 20], 60)],
)
def test_looks_are_rare_while_no_lane_is_done(done_after, looks, then):
    """They double, also from group to group; once a lane is done they are near each other again."""
    lanes, made = Lanes(4, 2, [100]), 0
    lanes.fill()
    for steps in looks:
        assert lanes.until_next_look(10) == steps
        taken = steps if done_after is None else np.clip(done_after - made, 0, steps)
        lanes.advanced(steps, np.array([steps, taken]))
        made += steps
    assert lanes.until_next_look(10) == 0
    lanes.leave(lanes.occupied)
    lanes.fill()
    assert lanes.until_next_look(10) == then


def test_in_step_looks_do_not_depend_on_what_is_done():
    """What a lane's result is rounded to must not depend on the others."""
    lanes, looks = Lanes(2, 2, [100, 50]), []
    lanes.fill()
    while steps := lanes.until_next_look(10):
        looks.append(steps)
        lanes.advanced(steps, np.array([steps, steps // 2]))
    assert looks == [10, 10, 20, 40, 20]
    lanes.go_on(lanes.occupied)
    lanes.fill()
    assert lanes.until_next_look(10) == 10


def steps_in_step(needed: list[int], width: int, stages: list[int]) -> list[tuple[int, int, int]]:
    """Drives lanes of an attack of several stages: stage, lanes filled and steps of each group."""
    lanes, taken, groups, done = Lanes(len(needed), width, stages), {}, [], set()
    while lanes.busy or lanes.queue:
        filled = lanes.fill()
        if filled.any():
            assert np.array_equal(filled, lanes.occupied)  # none joins a group on its way
            groups.append((lanes.stage, int(filled.sum()), 0))
            for example, before in zip(lanes.example[filled], lanes.taken[filled], strict=True):
                assert taken.get(example, 0) == before == sum(stages[: lanes.stage])
        made = lanes.until_next_look(7)
        end = np.array(needed)[np.maximum(lanes.example, 0)]
        lanes.advanced(made, np.clip(end - lanes.taken, 0, made))
        groups[-1] = (*groups[-1][:2], groups[-1][2] + made)
        leaving, going_on = lanes.ended(lanes.taken >= end)
        assert not np.any(leaving & going_on)
        taken.update(zip(lanes.example[going_on], lanes.taken[going_on], strict=True))
        lanes.go_on(going_on)
        if lanes.should_settle(leaving):
            for example, count in zip(lanes.example[leaving], lanes.taken[leaving], strict=True):
                assert example not in done
                assert count == min(needed[example], sum(stages))
                done.add(example)
            lanes.leave(leaving)
    assert len(done) == len(needed)
    return groups


def test_in_step_all_go_through_a_stage_before_any_goes_on():
    """Of ten examples, in lanes for four, six are left after the first stage and three at last."""
    needed = [5, 99, 99, 5, 99, 25, 25, 5, 25, 5]
    groups = steps_in_step(needed, width=4, stages=[10, 20, 30])
    assert groups == [
        (0, 4, 10), (0, 4, 10), (0, 2, 10),
        (1, 4, 20), (1, 2, 20),
        (2, 3, 30),
    ]  # fmt: skip


def test_a_group_in_step_that_is_done_makes_room_at_once():
    assert steps_in_step([3] * 5, width=4, stages=[70, 100]) == [(0, 4, 7), (0, 1, 7)]


def test_in_step_further_attempts_begin_together():
    lanes = Lanes(3, 2, [10, 10])
    lanes.fill()
    lanes.advanced(10, np.array([10, 4]))
    leaving, going_on = lanes.ended(np.array([False, True]))
    lanes.go_on(going_on)
    lanes.leave(leaving, again=leaving)
    waiting = [(entry.example, entry.attempt, entry.stage) for entry in lanes.queue]
    assert waiting == [(2, 0, 0), (0, 0, 1), (1, 1, 0)]
    for at in waiting:
        assert lanes.fill().sum() == 1
        assert (lanes.example[0], lanes.attempt[0], lanes.stage) == at
        lanes.advanced(1, np.array([1, 0]))
        lanes.leave(lanes.occupied)
