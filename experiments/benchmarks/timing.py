"""Comparing the speed of several things in one process, on a machine that may be shared."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence

# More would only mean that a call is too short to be timed like this.
MOST_REPEATS = 10_000


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Something to be timed.

    Attributes:
      name: what it is.
      work: units (images, example-steps) that one call does.
      call: does them, and returns when they are done.
    """

    name: str
    work: int
    call: Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Units of work a second, one number a round.

    Attributes:
      name: the candidate's.
      rates: units a second in each round.
    """

    name: str
    rates: tuple[float, ...]

    @property
    def best(self) -> float:
        """The fastest round: what the machine does when nothing else disturbs it."""
        return max(self.rates)

    @property
    def median(self) -> float:
        """The median of the rounds; far below the best on a machine that was not idle."""
        return statistics.median(self.rates)


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """How long one or more of these spans of time, from a start to an end, were going on."""
    seconds, until = 0.0, -math.inf
    for start, end in sorted(spans):
        seconds += max(0.0, end - max(start, until))
        until = max(until, end)
    return seconds


def compare(
    candidates: Sequence[Candidate],
    *,
    rounds: int,
    seconds: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Measurement]:
    """Times the candidates in turn, round after round, so that a slow minute hits all of them.

    Each is called once beforehand, for compiling and for filling caches, and once to see how often
    it has to be repeated.

    Args:
      candidates: of different names.
      rounds: timings of each candidate.
      seconds: each timing repeats its candidate's call until it lasts about that long.
      progress: called with (calls made, calls in all), the first of each candidate included.

    Returns:
      A measurement for each name.
    """
    repeats, done, total = {}, 0, len(candidates) * (1 + rounds)
    for candidate in candidates:
        progress(done, total)
        candidate.call()
        once = max(elapsed(candidate.call), 1e-9)
        repeats[candidate.name] = min(math.ceil(seconds / once), MOST_REPEATS)
        done += 1
    rates = {candidate.name: [] for candidate in candidates}
    for _ in range(rounds):
        for candidate in candidates:
            number = repeats[candidate.name]
            rates[candidate.name].append(
                number * candidate.work / elapsed(candidate.call, repeats=number)
            )
            done += 1
            progress(done, total)
    return {name: Measurement(name, tuple(values)) for name, values in rates.items()}


def elapsed(call: Callable[[], object], *, repeats: int = 1) -> float:
    """Seconds that `repeats` calls take."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return time.perf_counter() - start
