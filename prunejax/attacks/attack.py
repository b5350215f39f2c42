"""What every attack is: hyperparameters, and pure functions init, step and result.

An attack is written for ONE example, an image without a batch axis; `jax.vmap` makes it a batch,
so that a result can depend neither on the batch's size nor on its order. `attacks.run` drives it.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from prunejax import names, norms
from prunejax.classifier import Classifier

State = Any


class AttackResult(NamedTuple):
    """What an attack found, for one example or with a leading batch axis.

    Attributes:
      images: the adversarial image in [0, 1]; the clean one where nothing was found.
      success: whether it is adversarial, and within the budget where there is one.
      distance: from the clean image, in the attack's norm; 0 where the clean image already is
        adversarial, `inf` where nothing was found.
    """

    images: jax.Array
    success: jax.Array
    distance: jax.Array


class Differentiable(Protocol):
    """Maps images `[B, ...]` in [0, 1] to logits `[B, C]`."""

    def __call__(self, images: jax.Array) -> jax.Array: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attack:
    """Hyperparameters that all attacks share. Frozen and hashable: equal attacks share programs.

    Attributes:
      norm: in which the perturbation is measured, a key of `norms.NORMS`.
      steps: iterations, one gradient each.
      restarts: independent tries for an example, each with its own key; a fixed-budget attack
        stops at the first that succeeds, a minimum-norm attack keeps the nearest.
      targeted: labels are the classes to reach, not the ones to leave.
    """

    norm: str
    steps: int
    restarts: int = 1
    targeted: bool = False

    # A minimum-norm attack looks for the nearest adversarial example; the others need a budget.
    minimum_norm: ClassVar[bool] = False

    def __post_init__(self):
        names.lookup("norm", self.norm, norms.NORMS)
        for name in ("steps", "restarts"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; an integer of at least 1 is needed.")

    def init(
        self,
        classifier: Classifier,
        image: jax.Array,
        label: jax.Array,
        key: jax.Array,
        eps: jax.Array,
    ) -> State:
        """The state before the first step; `eps` is the budget, `inf` for minimum-norm attacks."""
        raise NotImplementedError

    def step(self, classifier: Classifier, state: State) -> State:
        """The state after one more iteration."""
        raise NotImplementedError

    def finished(self, state: State) -> jax.Array:
        """Whether further steps cannot change the result."""
        raise NotImplementedError

    def result(self, classifier: Classifier, state: State) -> AttackResult:
        """What was found; the last iterate, which no step has looked at, is looked at here."""
        raise NotImplementedError

    def is_adversarial(self, logits: jax.Array, label: jax.Array) -> jax.Array:
        """Whether the prediction is what the attacker wants, for logits `[..., C]`."""
        reached = jnp.argmax(logits, axis=-1) == label
        return reached if self.targeted else ~reached

    def nothing_found(self, image: jax.Array) -> AttackResult:
        """The result to start from: the clean image at infinite distance."""
        return AttackResult(image, jnp.array(False), jnp.array(jnp.inf))

    def nearest(
        self, best: AttackResult, image: jax.Array, x: jax.Array, adversarial: jax.Array
    ) -> AttackResult:
        """`best`, or `x` where that is adversarial and nearer to `image`."""
        distance = norms.get(self.norm).distance(x - image)
        better = adversarial & (distance < best.distance)
        candidate = AttackResult(x, adversarial, distance)
        return jax.tree.map(lambda new, old: jnp.where(better, new, old), candidate, best)


def logits_of(classifier: Differentiable, image: jax.Array) -> jax.Array:
    """Logits `[C]` of one image."""
    return classifier(image[None])[0]
