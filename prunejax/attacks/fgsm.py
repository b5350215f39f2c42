"""Fast gradient sign method, for every norm."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from prunejax import norms
from prunejax.attacks.attack import Attack, Found, logits_of, objective
from prunejax.attacks.goal import Goal


class FGSMState(NamedTuple):
    """State of FGSM. `[...]` is the image's shape; other numbers are scalars.

    Attributes:
      image, goal, eps: clean image `[...]`, what is wanted, and the budget.
      x: `[...]` the perturbed image.
    """

    image: jax.Array
    goal: Goal
    eps: jax.Array
    x: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """One step to the maximum of the linearised loss over ball and box.

        x = image + argmax_d <grad L(image), d>  such that  ||d|| <= eps, image + d in [0, 1]

    In Linf that is clip(image + eps * sign(grad)); in L0 the floor(eps) units that gain most go to
    their end of the box. A unit is a feature, each channel value by itself, in "l0", and a pixel
    with all its channels in "l0_pixels". Goodfellow, Shlens & Szegedy (2015), "Explaining and
    harnessing adversarial examples", section 4.

    Attributes:
      steps: 1 and no other number.
      loss: what is maximised, a key of `losses.LOSSES` other than "kl".

    Raises:
      ValueError: a hyperparameter out of its range, an unknown norm or loss, or "kl".
    """

    norm: str = "linf"
    steps: int = 1
    loss: str = "cross_entropy"

    draws: ClassVar[bool] = False
    needs_gradient_at_image: ClassVar[bool] = True
    reference: ClassVar[str] = "Goodfellow, Shlens & Szegedy 2015"
    entrywise: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if self.steps != 1:
            raise ValueError(f"steps is {self.steps}; FGSM makes 1 step, use PGD for more.")

    def init(self, classifier, image, goal, key, eps) -> FGSMState:
        del classifier, key
        return FGSMState(image, goal, eps, image)

    def step(self, classifier, state: FGSMState) -> FGSMState:
        climbed = objective(classifier, self.loss, state.goal)
        grad, _ = jax.grad(climbed, has_aux=True)(state.image)
        norm = norms.get(self.norm)
        delta = norm.maximizer(grad, state.image, state.eps)
        return state._replace(x=norm.moved(state.image, delta, state.eps))

    def finished(self, state: FGSMState) -> jax.Array:
        return jnp.array(False)

    def result(self, classifier, state: FGSMState) -> Found:
        adversarial = state.goal.reached(logits_of(classifier, state.x))
        return self.nearest(self.nothing_found(state.image), state.image, state.x, adversarial)
