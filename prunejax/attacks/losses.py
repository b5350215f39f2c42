"""What an attack maximises, for one example: logits `[C]` and a goal -> scalar.

A loss that compares more logits than there are classes is replaced by the margin; `in_force` tells.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from prunejax.attacks.goal import Goal, without

Loss = Callable[[jax.Array, Goal], jax.Array]


def cross_entropy(logits: jax.Array, goal: Goal) -> jax.Array:
    """-log softmax(z)_y; with a target t, log softmax(z)_t."""
    log_probabilities = jax.nn.log_softmax(logits)
    if goal.target is None:
        return -log_probabilities[goal.label]
    return log_probabilities[goal.target]


def margin(logits: jax.Array, goal: Goal) -> jax.Array:
    """max_{k != y} z_k - z_y: positive when misclassified; with a target t, z_t - z_y.

    Where only a target is given, y is the strongest other class. Unlike the cross-entropy it keeps
    a gradient where the network is very sure. Also known as the difference of logits.
    """
    if goal.target is None:
        return jnp.max(without(logits, goal.label)) - logits[goal.label]
    if goal.label is None:
        return logits[goal.target] - jnp.max(without(logits, goal.target))
    return logits[goal.target] - logits[goal.label]


def dlr(logits: jax.Array, goal: Goal) -> jax.Array:
    """Difference of logits ratio, the margin in units that do not change with the logits' scale.

        (max_{k != y} z_k - z_y) / (z_(1) - z_(3));  with a target t
        (z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2)

    where z_(1) >= z_(2) >= ... Croce & Hein (2020), "Reliable evaluation of adversarial
    robustness with an ensemble of diverse parameter-free attacks", sections 4.1 and 5.1.
    """
    if in_force("dlr", logits.size, goal.target is not None) == "margin":
        return margin(logits, goal)
    largest = jax.lax.top_k(logits, 3 if goal.target is None else 4)[0]
    below = largest[2] if goal.target is None else (largest[2] + largest[3]) / 2
    return margin(logits, goal) / (largest[0] - below + 1e-12)


def kl(logits: jax.Array, goal: Goal) -> jax.Array:
    """KL(softmax(z_clean) || softmax(z)), which knows no label; its gradient is 0 at the start.

    What TRADES maximises: Zhang et al. (2019), equation 5. Without clean logits, or with a target,
    it has no meaning.
    """
    if goal.clean is None or goal.target is not None:
        raise ValueError("loss is 'kl'; it needs the clean logits and no target, use another loss.")
    log_clean = jax.nn.log_softmax(goal.clean)
    return jnp.sum(jnp.exp(log_clean) * (log_clean - jax.nn.log_softmax(logits)))


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "kl": kl,
}


# Distances from the clean prediction: they head for no target, and are flat at the clean image.
FROM_CLEAN = ("kl",)


def in_force(name: str, classes: int, aimed: bool) -> str:
    """The loss that is computed where `name` is asked for: "margin" for DLR with few classes.

    Args:
      name: a key of `LOSSES`.
      classes: of the network.
      aimed: whether the goal has a target, for DLR then needs 4 classes instead of 3.
    """
    return "margin" if name == "dlr" and classes < (4 if aimed else 3) else name
