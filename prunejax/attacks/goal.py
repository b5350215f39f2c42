"""What an attacker wants of one example."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Goal(NamedTuple):
    """The class to leave, the class to head for, or both.

    Whether a class is given is part of the structure, so it is known when a program is traced.

    Attributes:
      label: the class to leave; None where a prediction of `target` is wanted, whatever it was.
      target: the class to head for; None for any. With a label, leaving it for another class is
        a success as well.
      clean: logits `[C]` of the clean image; None where nobody needs them.
    """

    label: jax.Array | None = None
    target: jax.Array | None = None
    clean: jax.Array | None = None

    def reached(self, logits: jax.Array) -> jax.Array:
        """Whether the prediction is as wanted, for logits `[C]`; for a batch of goals `[B, C]`.

        With a logit that is NaN there is no prediction: an attack that gets lost has found nothing.
        """
        prediction = jnp.argmax(logits, axis=-1)
        wanted = prediction == self.target if self.label is None else prediction != self.label
        return wanted & ~jnp.isnan(logits).any(axis=-1)

    def given(self, logits: jax.Array) -> jax.Array:
        """Whether the clean image's logits are what is wanted, so that nothing is to be attacked.

        Those with a NaN are not the label's: what a network cannot classify it gets wrong.
        """
        lost = jnp.isnan(logits).any(axis=-1)
        return self.reached(logits) | (lost if self.label is not None else False)

    def judged(self) -> "Goal":
        """What counts as success, whichever class is headed for."""
        return self if self.label is None else self._replace(target=None)

    def source(self, logits: jax.Array) -> jax.Array:
        """The class whose logit has to fall: the label, else the strongest but the target."""
        return strongest_other(logits, self.target) if self.label is None else self.label

    def rival(self, logits: jax.Array) -> jax.Array:
        """The class whose logit has to rise: the target, else the strongest but the label."""
        return strongest_other(logits, self.label) if self.target is None else self.target


def strongest_other(logits: jax.Array, label: jax.Array) -> jax.Array:
    """The class with the largest of the logits `[C]`, `label` left out."""
    return jnp.argmax(without(logits, label))


def without(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Logits `[C]` with minus infinity at `label`."""
    return jnp.where(jnp.arange(logits.size) == label, -jnp.inf, logits)


def likeliest(logits: jax.Array, label: jax.Array, number: int) -> jax.Array:
    """`[K]` the classes with the highest of the logits `[C]` but for `label`, `number` at most."""
    return jax.lax.top_k(without(logits, label), min(number, logits.size - 1))[1]
