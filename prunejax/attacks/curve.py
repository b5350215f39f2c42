"""One attack at a list of budgets, in one call."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from prunejax.attacks import cascade
from prunejax.attacks.attack import Attack
from prunejax.attacks.inputs import require_attack, require_options, validated
from prunejax.attacks.runner import AttackResult
from prunejax.classifier import Classifier


class CurveResult(NamedTuple):
    """How many examples an attack leaves right, at growing budgets.

    Attributes:
      budgets: `[K]` increasing, in the attack's norm.
      accuracies: `[K]` in [0, 1], the share of examples that is left right at each.
      result: of the run, with its distances and passes, where one run was all; None where there
        were several, each on the examples that those before it had left.
      doubts: reasons to doubt the accuracies, of all runs, each sentence once.
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
    rising = numbers.ndim == 1 and numbers.dtype.kind in "iuf" and len(numbers) > 0
    if not rising or not (numbers[0] >= 0 and np.all(np.diff(numbers) > 0)):
        raise ValueError(f"budgets is {budgets}; a list of increasing numbers >= 0 is needed.")
    eps = None if attack.minimum_norm else numbers[-1]
    given = validated(attack, classifier, images, labels, key=key, eps=eps, **options)
    budgets, number = numbers.astype(np.float32), len(given.images)
    once, others = _without_budgets(attack, len(budgets))
    runs, doubts, nearest = [], {}, np.full(number, np.inf)
    for name, member in once.items():
        run = cascade.run_on(member, classifier, given, progress)
        nearest = np.minimum(nearest, run.distance)
        runs.append(run)
        doubts |= dict.fromkeys(f"{name}: {said}" if name else said for said in run.warnings())
    standing, left = np.arange(number), []
    for eps in budgets:
        standing = standing[nearest[standing] > eps]
        if others is not None and len(standing):
            some = given._replace(eps=np.full(number, eps)).of(standing)
            run = cascade.run_on(others, classifier, some, progress)
            standing = standing[~run.success]
            runs.append(run)
            doubts |= dict.fromkeys(run.warnings())
        left.append(len(standing) / number)
    return CurveResult(budgets, np.array(left), runs[0] if len(runs) == 1 else None, tuple(doubts))


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
