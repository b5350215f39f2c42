"""A fixed-budget attack as a minimum-norm attack: bisection over the budget of each example."""

from collections.abc import Callable

import jax
import numpy as np

from prunejax.attacks import cascade, runner
from prunejax.attacks.attack import Attack
from prunejax.attacks.inputs import require_attack, validated
from prunejax.classifier import Classifier


def smallest_budget(
    attack: Attack | cascade.Cascade,
    classifier: Classifier,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    upper: float | np.ndarray,
    key: jax.Array,
    halvings: int = 10,
    progress: Callable[[int, int], None] | None = None,
    **options,
) -> runner.AttackResult:
    """The nearest adversarial examples that a fixed-budget attack finds by halving its budget.

    Each example has its own bracket; a success ends it at the distance that was really used, which
    may be less than the budget. In L0 the brackets end at neighbouring counts.

    Args:
      attack: a fixed-budget attack, or a cascade.
      classifier: maps images in [0, 1] to logits.
      images: `[N, ...]` in [0, 1].
      labels: `[N]`.
      upper: the largest budget, a number or `[N]`; what does not fall there is not found.
      key: as in `attacks.run`.
      halvings: the last bracket is `upper / 2 ** halvings` wide, or less.
      progress: called with (examples done, examples in all) of each of the runs.
      **options: `indices`, `batch_size` and `devices` of `attacks.run`.

    Returns:
      The nearest that were found. The diagnostics are of the run at `upper`; `diverged`, `outside`
      and `unconfirmed` of all runs together.

    Raises:
      ValueError: a minimum-norm attack, or an argument out of range, `upper` under the name `eps`;
        raised before anything is compiled.
    """
    require_attack(attack)
    if attack.minimum_norm:
        raise ValueError(f"attack is {attack}; it finds the smallest budget by itself, run it.")
    if not isinstance(halvings, int) or halvings < 1:
        raise ValueError(f"halvings is {halvings!r}; an integer of at least 1 is needed.")
    given = validated(attack, classifier, images, labels, key=key, eps=upper, **options)
    best = cascade.run_on(attack, classifier, given, progress)
    best = runner.AttackResult(*best[: len(runner.AttackResult._fields)])
    low, doubts = np.zeros_like(best.distance), [best.diagnostics]
    counts = attack.norm in ("l0", "l0_pixels")
    for _ in range(halvings):
        width = best.distance - low
        open_ = best.success & (width > (1 if counts else 0))
        if not open_.any():
            break
        eps = low + width / 2
        eps = np.floor(eps) if counts else eps
        tried = cascade.run_on(attack, classifier, given._replace(eps=eps).of(open_), progress)
        doubts.append(tried.diagnostics)
        of = np.flatnonzero(open_)
        best.forwards[of] += tried.forwards
        best.backwards[of] += tried.backwards
        won, lost = of[tried.success], of[~tried.success]
        best.images[won] = tried.images[tried.success]
        best.distance[won] = tried.distance[tried.success]
        for norm, size in tried.sizes.items():
            best.sizes[norm][won] = size[tried.success]
        low[lost] = eps[lost]
    return best._replace(diagnostics=cascade.counted_together(doubts))
