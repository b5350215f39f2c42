"""Which lanes are filled when, on the host alone."""

import numpy as np
import pytest

from prunejax.attacks.lanes import Lanes


def steps_of_all_lanes(needed: list[int], width: int, steps: int, chunk: int) -> tuple[int, int]:
    """How many steps the lanes make together until examples that need so many are done.

    And how often lanes are looked at.
    """
    lanes, total, looks = Lanes(len(needed), width), 0, 0
    done = []
    while lanes.busy or lanes.queue:
        lanes.fill(steps)
        made = min(chunk, lanes.shortest())
        end = np.array(needed)[np.maximum(lanes.example, 0)]
        lanes.advanced(made, np.clip(end - lanes.taken, 0, made))
        total += made
        leaving = lanes.occupied & ((lanes.taken >= end) | (lanes.left <= 0))
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
