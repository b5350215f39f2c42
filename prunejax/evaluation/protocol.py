"""What an evaluation runs: an attack, the budgets to look at, and the one to quote."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from prunejax.attacks import Attack, Cascade
from prunejax.attacks.inputs import require_attack


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One attack of an evaluation, and the budgets at which to look.

    Attributes:
      name: of the records file and in tables.
      attack: the attack, untargeted: it is given the true classes.
      budgets: increasing, in the attack's norm. A fixed-budget attack runs at each; a minimum-norm
        attack runs once, whatever they are.
      stated: the one budget that tables quote.

    Raises:
      ValueError: a name that is none of a file, no attack or a targeted one, or budgets that are
        not finite, not increasing or negative, or not those at which it runs.
    """

    name: str
    attack: Attack | Cascade
    budgets: tuple[float, ...]
    stated: float

    def __post_init__(self):
        named = isinstance(self.name, str) and self.name
        if not named or pathlib.PurePath(self.name).name != self.name:
            raise ValueError(f"name is {self.name!r}; it must be one for a file, without folders.")
        require_attack(self.attack)
        if self.attack.targeted:
            raise ValueError(
                f"attack of {self.name!r} is {self.attack}, targeted; accuracy needs one that only "
                "leaves the true class."
            )
        if np.ndim(self.budgets) != 1:
            raise ValueError(f"budgets of {self.name!r} is {self.budgets!r}; a tuple is needed.")
        if not all(map(is_finite, self.budgets)):
            raise ValueError(f"budgets of {self.name!r} is {self.budgets}; all must be finite.")
        if list(self.budgets) != sorted(set(self.budgets)) or not len(self.budgets):
            raise ValueError(
                f"budgets of {self.name!r} is {self.budgets}; increasing ones are needed."
            )
        if min(self.budgets) < 0:
            raise ValueError(f"budgets of {self.name!r} is {self.budgets}; none may be negative.")
        if not is_finite(self.stated) or self.stated < 0:
            raise ValueError(
                f"stated budget of {self.name!r} is {self.stated}; a finite number >= 0 is needed."
            )
        if not self.attack.minimum_norm and self.stated not in self.budgets:
            raise ValueError(
                f"stated budget {self.stated} of {self.name!r} is not in {self.budgets}."
            )

    @property
    def runs_at(self) -> tuple[float | None, ...]:
        """The budgets at which the attack runs: of a minimum-norm attack None alone."""
        return (None,) if self.attack.minimum_norm else self.budgets


def is_finite(budget: Any) -> bool:
    """Whether it is a number, finite as float32 too."""
    number = np.asarray(budget)
    real = number.ndim == 0 and number.dtype.kind in "iuf"
    return real and bool(abs(number) <= np.finfo(np.float32).max)
