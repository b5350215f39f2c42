"""One attack at a list of budgets, in one call."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from prunejax.attacks import cascade
from prunejax.attacks.attack import Attack
from prunejax.attacks.diagnostics import sentences
from prunejax.attacks.inputs import require_attack, require_counts, require_options
from prunejax.attacks.runner import AttackResult
from prunejax.classifier import Classifier


class CurveResult(NamedTuple):
    """How many examples an attack leaves right, at growing budgets.

    Attributes:
      budgets: `[K]` increasing, in the attack's norm.
      accuracies: `[K]` in [0, 1], the share of examples that is left right at each.
      result: of the run, with its distances and passes, where one run was all; None where there
        were several, each on the examples that those before it had left.
      doubts: reasons to doubt the accuracies, of all runs; of sentences that differ in their
        numbers only, that of the run with the largest.
    """

    budgets: np.ndarray
    accuracies: np.ndarray
    result: AttackResult | cascade.CascadeResult | None
    doubts: tuple[str, ...]

    def warnings(self) -> list[str]:
        """Reasons to doubt the accuracies, a sentence each."""
        return list(self.doubts)


def robust_accuracies(
    attack: Attack | cascade.Cascade,
    classifier: Classifier,
    images: np.ndarray,
    labels: np.ndarray,
    budgets: Sequence[float],
    *,
    key: jax.Array,
    progress: Callable[[int, int], None] | None = None,
    **options,
) -> CurveResult:
    """Share of examples that an attack leaves right, at each budget: the security curve.

    A minimum-norm attack runs once for the whole curve, also in a cascade, where it then begins and
    sees all examples. A fixed-budget attack runs at each budget
    on what the smaller ones have left: the same image lies in the larger ball.

    Args:
      attack: any attack or cascade.
      classifier: maps images in [0, 1] to logits.
      images: `[N, ...]` in [0, 1].
      labels: `[N]`.
      budgets: `[K]` increasing, in the attack's norm.
      key: as in `attacks.run`.
      progress: called with (examples done, examples in all) of the run at each budget.
      **options: `indices`, `batch_size` and `devices` of `attacks.run`.

    Returns:
      `accuracies` `[K]`, and reasons to doubt them.

    Raises:
      ValueError: budgets that do not increase, or an argument out of range; raised before anything
        is compiled.
    """
    require_attack(attack)
    require_options(options)
    numbers = np.asarray(budgets)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iuf" or not _increase(numbers.astype(float)):
        raise ValueError(
            f"budgets is {budgets}; a list of increasing finite numbers >= 0 is needed."
        )
    if not attack.minimum_norm:
        require_counts("budgets", numbers, attack.norm)
    eps = None if attack.minimum_norm else numbers[-1]
    given = cascade.checked(attack, classifier, images, labels, key=key, eps=eps, **options)
    budgets, number = numbers.astype(np.float32), len(given.images)
    once, others = _without_budgets(attack, len(budgets))
    # Those without gradients are asked last, for what all others had failed on.
    blind = getattr(attack, "after_gradients", ())
    runs, doubts = [], []
    nearest, blindly = np.full(number, np.inf), np.full(number, np.inf)
    for name, member in once.items():
        run = cascade.run_on(member, classifier, given, progress)
        found = blindly if name in blind else nearest
        np.minimum(found, run.distance, out=found)
        runs.append(run)
        doubts += [doubt._replace(member=name) for doubt in run.doubts()]
    standing, left, broken = np.arange(number), [], np.zeros(number, bool)
    for eps in budgets:
        standing = standing[nearest[standing] > eps]
        if others is not None and len(standing):
            some = given._replace(eps=np.full(number, eps)).of(standing)
            run = cascade.run_on(others, classifier, some, progress)
            broken[standing] |= cascade.broken_in(run, attack)
            standing = standing[~run.success]
            runs.append(run)
            doubts += run.doubts()
        broken[standing] |= blindly[standing] <= eps
        standing = standing[blindly[standing] > eps]
        left.append(len(standing) / number)
    whole = runs[0] if len(runs) == 1 else None
    said = tuple(sentences([*doubts, *cascade.masked(broken)]))
    return CurveResult(budgets, np.array(left), whole, said)


def _increase(budgets: np.ndarray) -> bool:
    """Whether they are increasing numbers >= 0, finite as float32 too, and there are some."""
    within = (budgets >= 0) & (budgets <= np.finfo(np.float32).max)
    return len(budgets) > 0 and bool(within.all() and (np.diff(budgets) > 0).all())


def _without_budgets(
    attack: Attack | cascade.Cascade, budgets: int
) -> tuple[dict[str, Attack], Attack | cascade.Cascade | None]:
    """What runs once for all budgets, by its name in a cascade, and what runs at each of them.

    At a single budget a cascade keeps its order, in which later members see fewer examples.
    """
    if isinstance(attack, Attack):
        return ({"": attack}, None) if attack.minimum_norm else ({}, attack)
    once = {name: member for name, member in attack.members if member.minimum_norm}
    if budgets == 1 or not once:
        return {}, attack
    others = tuple(pair for pair in attack.members if pair[0] not in once)
    return once, dataclasses.replace(attack, members=others) if others else None
