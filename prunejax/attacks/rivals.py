"""The classes whose boundaries an attack along linearised boundaries considers."""

import jax

from prunejax.attacks.attack import Attack, logits_of
from prunejax.attacks.goal import Goal, likeliest
from prunejax.classifier import Classifier


def rivals(classifier: Classifier, image: jax.Array, goal: Goal, candidates: int) -> jax.Array:
    """`[K]` the target where there is one, else the likeliest at the image but for the true class.

    Args:
      classifier: under attack.
      image: `[...]` the clean image.
      goal: what is wanted.
      candidates: K at most.
    """
    if goal.target is not None:
        return goal.target[None]
    clean = logits_of(classifier, image) if goal.clean is None else goal.clean
    return likeliest(clean, goal.label, candidates)


def how_many(attack: Attack, classes: int) -> int:
    """K for an attack that has `candidates`."""
    return 1 if attack.targeted or attack.targets else min(attack.candidates, classes - 1)
