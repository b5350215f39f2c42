"""Which example each lane holds, and which are waiting: plain bookkeeping on the host."""

import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Lanes are halved down to this many: fewer would cost another compilation and save little.
FEWEST_LANES = 16
# To look at finished lanes and fill them costs about five steps of all lanes; twice that many may
# be idled away before it is done for few.
IDLE_STEPS = 10


class Entry(NamedTuple):
    """An example in the queue: its attempt, the stage it has reached, the steps taken so far."""

    example: int
    attempt: int = 0
    stage: int = 0
    taken: int = 0


class Lanes:
    """`width` lanes and the queue of `number` examples, at their first attempt.

    An attack of one stage fills a lane whenever it is free. In one of several all lanes are in
    step, at the same stage of the same attempt: they begin together, and who is not done at the end
    of a stage goes to the end of the queue, so that each stage's lanes are full.

    Args:
      number: of examples.
      width: of lanes.
      stages: steps of each.
    """

    def __init__(self, number: int, width: int, stages: Sequence[int]):
        self.queue = collections.deque(map(Entry, range(number)))
        self.stages = stages
        self.together, self.moved = (0, 0), False
        self.example = np.full(width, -1)
        self.attempt = np.zeros(width, np.int32)
        self.left = np.zeros(width, int)
        self.taken = np.zeros(width, int)
        self.at_rest = np.zeros(width, bool)
        self.idle, self.quiet = 0, 0

    @property
    def in_step(self) -> bool:
        """Whether all lanes begin together."""
        return len(self.stages) > 1

    @property
    def occupied(self) -> np.ndarray:
        return self.example >= 0

    @property
    def busy(self) -> bool:
        return bool(self.occupied.any())

    @property
    def remaining(self) -> int:
        return len(self.queue) + int(self.occupied.sum())

    @property
    def stage(self) -> int:
        """Where all lanes are; of an attack of one stage always 0."""
        return self.together[1]

    def until_next_look(self, least: int) -> int:
        """How many steps to make: `least`, or as many as have been made since any lane was done.

        Of all examples: where none is ever done early, one look is enough for each. In step it is
        as many as have been made of the stage, whatever the others do.
        """
        if not self.busy:
            return 0
        return int(min(max(least, self.quiet), self.left[self.occupied].min()))

    def fill(self) -> np.ndarray:
        """Puts waiting examples into free lanes; returns which lanes they are."""
        filled = np.zeros(len(self.example), bool)
        for lane in np.flatnonzero(~self.occupied):
            if not self.queue or not self._may_begin(self.queue[0]):
                break
            entry = self.queue.popleft()
            self.example[lane], self.attempt[lane], self.taken[lane] = (
                entry.example, entry.attempt, entry.taken
            )  # fmt: skip
            self.left[lane], filled[lane] = self.stages[entry.stage], True
        if filled.any():
            self.at_rest = self.at_rest & ~filled
            self.quiet = 0 if self.in_step else self.quiet
        return filled

    def _may_begin(self, entry: Entry) -> bool:
        if not self.in_step:
            return True
        if not self.busy:
            self.together, self.moved = (entry.attempt, entry.stage), False
        return not self.moved and self.together == (entry.attempt, entry.stage)

    def advanced(self, steps: int, taken: np.ndarray) -> None:
        """Counts steps: of the time left, and those before and after a lane was finished."""
        self.moved = True
        self.left = self.left - steps
        self.taken = self.taken + taken
        self.idle += int(np.sum((steps - taken)[self.occupied]))
        at_rest = self.occupied & (taken < steps)
        any_done = np.any(at_rest & ~self.at_rest) and not self.in_step
        self.quiet = 0 if any_done else self.quiet + steps
        self.at_rest = at_rest

    def ended(self, finished: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which lanes are done with their attempt, and which only with this stage."""
        out_of_time = self.occupied & (self.left <= 0)
        last = self.stage == len(self.stages) - 1
        leaving = self.occupied & finished | (out_of_time & last)
        return leaving, out_of_time & ~leaving

    def leave(self, which: np.ndarray, again: np.ndarray | None = None) -> None:
        """Frees lanes; those in `again` go back to the queue for one more attempt."""
        if again is not None:
            retry = zip(self.example[again], self.attempt[again] + 1, strict=True)
            self.queue.extend(Entry(int(example), int(attempt)) for example, attempt in retry)
        self.example = np.where(which, -1, self.example)
        self.idle = 0

    def go_on(self, which: np.ndarray) -> None:
        """Frees lanes whose examples wait for the next stage."""
        lanes = (self.example[which], self.attempt[which], self.taken[which])
        for example, attempt, taken in zip(*lanes, strict=True):
            self.queue.append(Entry(int(example), int(attempt), self.stage + 1, int(taken)))
        self.example = np.where(which, -1, self.example)

    def should_settle(self, leaving: np.ndarray) -> bool:
        """Not for a single lane at once: finished ones wait until a quarter of the batch is done.

        Or until they have been idle for so long that filling them costs less. Nothing can be filled
        in step, so there they wait for the end of the stage.
        """
        out_of_time = (self.left[self.occupied] <= 0).any()
        enough = leaving.sum() == self.occupied.sum()
        if not self.in_step:
            enough |= leaving.sum() * 4 >= len(leaving)
            enough |= bool(self.queue) and self.idle >= IDLE_STEPS * len(leaving)
        return bool(leaving.any()) and bool(enough or out_of_time)


def lanes_of(number: int, width: int, devices: int) -> int:
    """`width`, or where they hold all examples the fewest that there are: two sizes and no more."""
    fewest = lane_count(1, width, devices)
    return fewest if number <= fewest else width


def lane_count(number: int, batch_size: int, devices: int) -> int:
    """`batch_size`, or a half of it, and so on, where that holds all examples.

    Few sizes, so that few programs are compiled.
    """
    lanes = batch_size
    while lanes // 2 >= max(number, devices, FEWEST_LANES):
        lanes //= 2
    return -(-lanes // devices) * devices
