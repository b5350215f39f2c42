"""One attack at a list of budgets, in one call."""

from collections.abc import Sequence

import jax
import numpy as np

from prunejax.attacks import cascade
from prunejax.attacks.attack import Attack
from prunejax.classifier import Classifier


def robust_accuracies(
    attack: Attack | cascade.Cascade,
    classifier: Classifier,
    images: np.ndarray,
    labels: np.ndarray,
    budgets: Sequence[float],
    *,
    key: jax.Array,
    **options,
) -> np.ndarray:
    """Share of examples that an attack leaves right, at each budget: the security curve.

    A minimum-norm attack runs once for the whole curve. A fixed-budget attack runs at each budget
    on what the smaller ones have left: the same image lies in the larger ball.

    Args:
      attack: any attack or cascade.
      classifier: maps images in [0, 1] to logits.
      images: `[N, ...]` in [0, 1].
      labels: `[N]`.
      budgets: `[K]` increasing, in the attack's norm.
      key: as in `attacks.run`.
      **options: of `attacks.run`.

    Returns:
      `[K]` accuracies in [0, 1].

    Raises:
      ValueError: budgets that do not increase, or an argument out of range.
    """
    budgets = np.asarray(budgets, np.float32)
    if budgets.ndim != 1 or not len(budgets) or (np.diff(budgets) <= 0).any():
        raise ValueError(f"budgets is {budgets}; a list of increasing ones is needed.")
    number, labels = len(images), np.asarray(labels)
    indices = options.pop("indices", None)
    indices = np.arange(number) if indices is None else np.asarray(indices)
    if attack.minimum_norm:
        run = cascade.run(attack, classifier, images, labels, key=key, indices=indices, **options)
        return np.mean(run.distance > budgets[:, None], axis=1)
    standing, left = np.arange(number), []
    for eps in budgets:
        if len(standing):
            run = cascade.run(
                attack, classifier, images[standing], labels[standing],
                key=key, eps=float(eps), indices=indices[standing], **options,
            )  # fmt: skip
            standing = standing[~run.success]
        left.append(len(standing) / number)
    return np.array(left)
