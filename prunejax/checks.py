"""Numbers that a caller gave, checked before anything is compiled, with an error that helps."""

from typing import Any

import numpy as np


def integer(name: str, value: Any, *, least: int) -> None:
    """Raises a ValueError that names the argument unless it is an integer of at least `least`."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least:
        raise ValueError(f"{name} is {value!r}; an integer of at least {least} is needed.")


def number(name: str, value: Any, *, within: str) -> None:
    """Raises a ValueError that names the argument unless it lies in an interval, say "(0, 1]".

    What ends in "inf)" takes finite numbers only.
    """
    low, high = map(float, within[1:-1].split(","))
    ends = [end for end, bracket in ((low, within[0]), (high, within[-1])) if bracket in "[]"]
    try:
        fits = not isinstance(value, bool | str) and bool(low < value < high or value in ends)
    except (TypeError, ValueError):  # nothing that can be compared, or several numbers
        fits = False
    if not fits:
        raise ValueError(f"{name} is {value!r}; it must lie in {within}.")
