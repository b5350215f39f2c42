"""What an attack maximises, for one example: logits `[C]` and a label -> scalar."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """-log softmax(z)_y."""
    return -jax.nn.log_softmax(logits)[label]


def margin(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Largest other logit minus the label's, max_{k != y} z_k - z_y: positive when misclassified.

    Unlike the cross-entropy it keeps a gradient where the network is very sure.
    """
    is_label = jnp.arange(logits.size) == label
    return jnp.max(jnp.where(is_label, -jnp.inf, logits)) - logits[label]


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "margin": margin}
