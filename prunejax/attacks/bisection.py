"""A fixed-budget attack as a minimum-norm attack: bisection over the budget of each example."""

import jax
import numpy as np

from prunejax.attacks import cascade, runner
from prunejax.attacks.attack import Attack
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
      **options: of `attacks.run`.

    Raises:
      ValueError: a minimum-norm attack, or an argument out of range.
    """
    if attack.minimum_norm:
        raise ValueError(f"attack is {attack}; it finds the smallest budget by itself, run it.")
    if halvings < 1:
        raise ValueError(f"halvings is {halvings}; at least 1 is needed.")
    number = len(images)
    indices = options.pop("indices", None)
    indices = np.arange(number) if indices is None else np.asarray(indices)
    best = cascade.run(
        attack, classifier, images, labels, key=key, eps=upper, indices=indices, **options
    )
    best = runner.AttackResult(*best[: len(runner.AttackResult._fields)])
    low = np.zeros(number, np.float32)
    counts = attack.norm in ("l0", "l0_pixels")
    for _ in range(halvings):
        width = best.distance - low
        open_ = best.success & (width > (1 if counts else 0))
        if not open_.any():
            break
        eps = low[open_] + width[open_] / 2
        eps = np.floor(eps) if counts else eps
        tried = cascade.run(
            attack,
            classifier,
            images[open_],
            np.asarray(labels)[open_],
            key=key,
            eps=eps,
            indices=indices[open_],
            **options,
        )
        of = np.flatnonzero(open_)
        best.forwards[of] += tried.forwards
        best.backwards[of] += tried.backwards
        won = of[tried.success]
        best.images[won] = tried.images[tried.success]
        best.distance[won] = tried.distance[tried.success]
        for norm, size in tried.sizes.items():
            best.sizes[norm][won] = size[tried.success]
        low[of[~tried.success]] = eps[~tried.success]
    return best
