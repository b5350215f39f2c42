"""Fast gradient sign method, for every norm."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from prunejax import names, norms
from prunejax.attacks import losses
from prunejax.attacks.attack import Attack, Found, logits_of
from prunejax.attacks.goal import Goal


class FGSMState(NamedTuple):
    """Clean image, goal, budget, and the perturbed image x."""

    image: jax.Array
    goal: Goal
    eps: jax.Array
    x: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """One step to the maximum of the linearised loss over ball and box.

        x = image + argmax_d <grad L(image), d>  such that  |d| <= eps, image + d in [0, 1]

    In Linf that is clip(image + eps * sign(grad)). Goodfellow, Shlens & Szegedy (2015), section 4.

    Attributes:
      loss: what is maximised, a key of `losses.LOSSES`.
    """

    norm: str = "linf"
    steps: int = 1
    loss: str = "cross_entropy"

    reference: ClassVar[str] = "Goodfellow, Shlens & Szegedy 2015"
    entrywise: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        names.lookup("loss", self.loss, losses.LOSSES)
        if self.steps != 1:
            raise ValueError(f"steps is {self.steps}; FGSM makes 1 step, use PGD for more.")

    def init(self, classifier, image, goal, key, eps) -> FGSMState:
        del classifier, key
        return FGSMState(image, goal, eps, image)

    def step(self, classifier, state: FGSMState) -> FGSMState:
        def objective(x):
            return losses.LOSSES[self.loss](logits_of(classifier, x), state.goal)

        grad = jax.grad(objective)(state.image)
        delta = norms.get(self.norm).maximizer(grad, state.image, state.eps)
        return state._replace(x=jnp.clip(state.image + delta, 0, 1))

    def finished(self, state: FGSMState) -> jax.Array:
        return jnp.array(False)

    def result(self, classifier, state: FGSMState) -> Found:
        adversarial = state.goal.reached(logits_of(classifier, state.x))
        return self.nearest(self.nothing_found(state.image), state.image, state.x, adversarial)
