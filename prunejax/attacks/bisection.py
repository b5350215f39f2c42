"""A fixed-budget attack as a minimum-norm attack: bisection over the budget of each example."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from prunejax import checks, norms
from prunejax.attacks import cascade
from prunejax.attacks.attack import Attack
from prunejax.attacks.diagnostics import Diagnostics, sentences
from prunejax.attacks.inputs import require_attack, require_options
from prunejax.attacks.runner import AttackResult
from prunejax.classifier import Classifier


class BisectionResult(NamedTuple):
    """The nearest that was found, as numpy arrays with one entry an example.

    Attributes:
      images, success, distance, forwards, backwards, sizes: as in `AttackResult`, the passes of all
        runs together.
      diagnostics: of the run at the largest budget; `diverged`, `outside` and `unconfirmed` of all
        runs together. Ask the result for `warnings`, not these.
      doubts: reasons to doubt the result, of all runs and their members; of sentences that differ
        in their numbers only, that of the run with the largest.
    """

    images: np.ndarray
    success: np.ndarray
    distance: np.ndarray
    forwards: np.ndarray
    backwards: np.ndarray
    sizes: dict[str, np.ndarray]
    diagnostics: Diagnostics
    doubts: tuple[str, ...]

    def warnings(self) -> list[str]:
        """Reasons to doubt the result, a sentence each."""
        return list(self.doubts)


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
) -> BisectionResult:
    """The nearest adversarial examples that a fixed-budget attack finds by halving its budget.

    Each example has its own bracket; a success ends it at the distance that was really used, which
    may be less than the budget. In L0 the brackets end at neighbouring counts, after as many
    halvings as that takes.

    Args:
      attack: a fixed-budget attack, or a cascade.
      classifier: maps images in [0, 1] to logits.
      images: `[N, ...]` in [0, 1].
      labels: `[N]`.
      upper: the largest budget, a number or `[N]`; what does not fall there is not found.
      key: as in `attacks.run`.
      halvings: the last bracket is `upper / 2 ** halvings` wide, or less; not looked at in L0.
      progress: called with (examples done, examples in all) of each of the runs.
      **options: `indices`, `batch_size` and `devices` of `attacks.run`.

    Returns:
      The nearest that were found, and reasons to doubt that there are no nearer ones.

    Raises:
      ValueError: a minimum-norm attack, or an argument out of range, `upper` under the name `eps`;
        raised before anything is compiled.
    """
    require_attack(attack)
    if attack.minimum_norm:
        raise ValueError(f"attack is {attack}; it finds the smallest budget by itself, run it.")
    checks.integer("halvings", halvings, least=1)
    require_options(options)
    given = cascade.checked(attack, classifier, images, labels, key=key, eps=upper, **options)
    best = cascade.run_on(attack, classifier, given, progress)
    low, diagnostics = np.zeros_like(best.distance), [best.diagnostics]
    doubts, broken = best.doubts(), cascade.broken_in(best, attack)
    best = AttackResult(*best[: len(AttackResult._fields)])
    counts = norms.get(attack.norm).unit is not None
    if counts:
        halvings = given.images[0].size.bit_length()  # as many as close any bracket
    for _ in range(halvings):
        width = best.distance - low
        open_ = best.success & (width > (1 if counts else 0))
        if not open_.any():
            break
        eps = low + width / 2
        eps = np.floor(eps) if counts else eps
        tried = cascade.run_on(attack, classifier, given._replace(eps=eps).of(open_), progress)
        diagnostics.append(tried.diagnostics)
        doubts += tried.doubts()
        of = np.flatnonzero(open_)
        broken[of] |= cascade.broken_in(tried, attack)
        best.forwards[of] += tried.forwards
        best.backwards[of] += tried.backwards
        won, lost = of[tried.success], of[~tried.success]
        best.images[won] = tried.images[tried.success]
        best.distance[won] = tried.distance[tried.success]
        for norm, size in tried.sizes.items():
            best.sizes[norm][won] = size[tried.success]
        low[lost] = eps[lost]
    best = best._replace(diagnostics=cascade.counted_together(diagnostics))
    said = tuple(sentences([*doubts, *cascade.masked(broken)]))
    return BisectionResult(*best, doubts=said)
