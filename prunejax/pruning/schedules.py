"""Sparsity as a function of the step.

A schedule lists the steps at which the mask changes and the sparsity from each on. It is computed
on the host in double precision, so that a count like `round(0.9 * 11_164_352)` is exact.
"""

from collections.abc import Sequence

Schedule = Sequence[tuple[int, float]]


def one_shot(sparsity: float, step: int = 0) -> Schedule:
    """Everything at once, at `step`."""
    return [(step, _checked(sparsity))]


def cubic(
    sparsity: float, *, begin: int = 0, end: int, frequency: int = 100, initial: float = 0.0
) -> Schedule:
    """Gradual pruning, fast at first: s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (t_1 - t_0))^3.

    Zhu & Gupta (2018), equation 1. The mask changes at `begin`, then every `frequency` steps, and
    last at `end`, where the sparsity is `sparsity` exactly.

    Args:
      sparsity: final sparsity s_f in [0, 1).
      begin: first step t_0.
      end: last step t_1.
      frequency: steps between two changes.
      initial: sparsity s_i at `begin`.

    Raises:
      ValueError: a sparsity outside [0, 1) or below `initial`, an end before the begin, a
        frequency below 1.
    """
    _checked(sparsity), _checked(initial)
    if initial > sparsity:
        raise ValueError(
            f"initial is {initial}; masks are nested, so at most {sparsity} is possible."
        )
    if not 0 <= begin <= end:
        raise ValueError(f"begin is {begin} and end is {end}; 0 <= begin <= end is needed.")
    if frequency < 1:
        raise ValueError(f"frequency is {frequency}; it must be at least 1 step.")
    steps = [*range(begin, end, frequency)]

    def at(step: int) -> float:
        left = 1 - (step - begin) / (end - begin)
        return sparsity + (initial - sparsity) * left**3

    return [(step, at(step)) for step in steps] + [(end, sparsity)]


def _checked(sparsity: float) -> float:
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is {sparsity}; it must lie in [0, 1).")
    return sparsity
