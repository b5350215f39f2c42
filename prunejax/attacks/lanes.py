"""Which example each lane holds, and which are waiting: plain bookkeeping on the host."""

import collections

import numpy as np

# Lanes are halved down to this many: fewer would cost another compilation and save little.
FEWEST_LANES = 16
# To look at finished lanes and fill them costs about five steps of all lanes; twice that many may
# be idled away before it is done for few.
IDLE_STEPS = 10


class Lanes:
    """`width` lanes and the queue of `number` examples, at their first attempt."""

    def __init__(self, number: int, width: int):
        self.queue = collections.deque((example, 0) for example in range(number))
        self.example = np.full(width, -1)
        self.attempt = np.zeros(width, np.int32)
        self.left = np.zeros(width, int)
        self.taken = np.zeros(width, int)
        self.idle = 0

    @property
    def occupied(self) -> np.ndarray:
        return self.example >= 0

    @property
    def busy(self) -> bool:
        return bool(self.occupied.any())

    @property
    def remaining(self) -> int:
        return len(self.queue) + int(self.occupied.sum())

    def shortest(self) -> int:
        return int(self.left[self.occupied].min()) if self.busy else 0

    def fill(self, steps: int) -> np.ndarray:
        """Puts waiting examples into free lanes; returns which lanes are fresh."""
        fresh = np.zeros(len(self.example), bool)
        for lane in np.flatnonzero(~self.occupied)[: len(self.queue)]:
            self.example[lane], self.attempt[lane] = self.queue.popleft()
            self.left[lane], self.taken[lane], fresh[lane] = steps, 0, True
        return fresh

    def advanced(self, steps: int, taken: np.ndarray) -> None:
        """Counts steps: of the time left, and those before and after a lane was finished."""
        self.left = self.left - steps
        self.taken = self.taken + taken
        self.idle += int(np.sum((steps - taken)[self.occupied]))

    def leave(self, which: np.ndarray, again: np.ndarray | None = None) -> None:
        """Frees lanes; those in `again` go back to the queue for one more attempt."""
        if again is not None:
            self.queue.extend(zip(self.example[again], self.attempt[again] + 1, strict=True))
        self.example = np.where(which, -1, self.example)
        self.idle = 0

    def should_settle(self, leaving: np.ndarray) -> bool:
        """Not for a single lane at once: finished ones wait until a quarter of the batch is done.

        Or until they have been idle for so long that filling them costs less.
        """
        enough = leaving.sum() * 4 >= len(leaving) or leaving.sum() == self.occupied.sum()
        too_long = bool(self.queue) and self.idle >= IDLE_STEPS * len(leaving)
        out_of_time = (self.left[self.occupied] <= 0).any()
        return bool(leaving.any()) and bool(enough or too_long or out_of_time)


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
