"""Robust accuracy as a function of the parameters: what is left of it when a layer is pruned."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from prunejax import attacks, checks
from prunejax.attacks import Attack, Cascade
from prunejax.classifier import Classifier


def accuracy_under(
    attack: Attack | Cascade,
    classifier: Classifier,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    eps: float,
    key: jax.Array,
    batch_size: int = 256,
) -> Callable[[Any], float]:
    """The share of examples that an attack leaves right, as a function of the parameters.

        R(w) = 1/N #{i : f_w(x_i + d) = y_i for every |d| <= eps that the attack finds}

    Every call attacks the classifier with those parameters anew, with the same random numbers and
    the same compiled programs. The robust sensitivity of each layer (`pruning.sensitivity`):

        accuracy = evaluation.accuracy_under(attack, classifier, images, labels, eps=0.1, key=key)
        table = pruning.sensitivity.measure(classifier.params, pruner, (0.1, 0.3, 0.5), accuracy)
        allocation = pruning.sensitivity.densities(table, units, density=0.2)

    Args:
      attack: any untargeted attack or cascade.
      classifier: the network; its parameters are replaced, its other variables stay.
      images: `[N, ...]` in [0, 1], held out from training and from testing.
      labels: `[N]` true classes.
      eps: budget in the attack's norm. A minimum-norm attack runs without it and is read off at it.
      key: of the attack's random numbers.
      batch_size: examples under attack at a time.

    Returns:
      `params -> accuracy` in [0, 1].

    Raises:
      ValueError: no images, labels of another number, a targeted attack, or a budget that is
        negative or infinite.
    """
    if not len(images):
        raise ValueError("images is empty; an accuracy needs some.")
    if len(labels) != len(images):
        raise ValueError(f"labels has {len(labels)} entries for {len(images)} images.")
    checks.number("eps", eps, within="[0, inf)")
    if getattr(attack, "targeted", False):
        raise ValueError("attack is targeted; accuracy needs one that only leaves the true class.")

    def accuracy(params: Any) -> float:
        curve = attacks.robust_accuracies(
            attack, classifier.with_params(params), images, labels, [eps],
            key=key, batch_size=batch_size,
        )  # fmt: skip
        return float(curve.accuracies[0])

    return accuracy
