"""Projected gradient descent, for every norm."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from prunejax import norms
from prunejax.attacks.attack import Attack, Found, objective
from prunejax.attacks.goal import Goal


class PGDState(NamedTuple):
    """State of PGD. `[...]` is the image's shape; other numbers are scalars.

    Attributes:
      image, goal, eps: clean image `[...]`, what is wanted, and the budget.
      x: `[...]` the current iterate.
      g: `[...]` the accumulated gradient; None without momentum.
      found: the first iterate that was adversarial.
    """

    image: jax.Array
    goal: Goal
    eps: jax.Array
    x: jax.Array
    g: jax.Array | None
    found: Found


@dataclasses.dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """Steepest ascent on the loss, projected on ball and box after each step.

        x <- P(x + alpha * direction(grad L(x)))
        with momentum, direction(g) instead:  g <- momentum g + grad L(x) / ||grad L(x)||_1

    The projection on the intersection of ball and box is exact, the first adversarial iterate is
    kept, and the last one is looked at too. In L0 floor(eps) units may change: features, each
    channel value by itself, in "l0"; pixels with all their channels in "l0_pixels".

    Madry et al. (2018), "Towards deep learning models resistant to adversarial attacks", section 2.
    For L1 the direction is the sparse one of Tramer & Boneh (2019), "Adversarial training and
    robustness for multiple perturbations"; for L0 the projection is that of Croce & Hein (2019),
    "Sparse and imperceivable adversarial attacks". Momentum: Dong et al. (2018), "Boosting
    adversarial attacks with momentum", equations 6 and 7.

    Attributes:
      loss: what is maximised, a key of `losses.LOSSES`; "kl" needs the random start.
      relative_step: step length alpha as a share of eps, positive; by default 2.5 / steps in Linf
        and L2, 0.2 in L1. In L0 it is not a share of eps: how far the average entry moves, in units
        of the pixels' range. The default, 6, takes the steepest far beyond the box, so that how far
        a unit has moved before does not keep a steeper one out; the 120000 / 255 of Croce & Hein
        are 0.6 on MNIST.
      momentum: how much of the accumulated gradient is kept, at least 0; 1 in Dong et al., whose
        steps are 1 / steps of eps.
      random_start: start at a random point of ball and box instead of the clean image.

    Raises:
      ValueError: a hyperparameter out of its range, an unknown norm or loss, or "kl" without
        `random_start`.
    """

    norm: str = "linf"
    steps: int = 40
    loss: str = "margin"
    relative_step: float | None = None
    momentum: float = 0.0
    random_start: bool = True

    reference: ClassVar[str] = (
        "Madry et al. 2018; momentum: Dong et al. 2018; L1: Tramer & Boneh 2019; "
        "L0: Croce & Hein 2019"
    )
    entrywise: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if self.relative_step is not None:
            self._numbers("relative_step", within="(0, inf)")
        self._numbers("momentum", within="[0, inf)")

    @property
    def draws(self) -> bool:
        return self.random_start

    @property
    def needs_gradient_at_image(self) -> bool:
        return not self.random_start

    def init(self, classifier, image, goal, key, eps) -> PGDState:
        del classifier
        start = norms.get(self.norm).random_start(key, image, eps) if self.random_start else 0.0
        x = jnp.clip(image + start, 0, 1)
        g = jnp.zeros_like(x) if self.momentum else None
        return PGDState(image, goal, eps, x, g, self.nothing_found(image))

    def step(self, classifier, state: PGDState) -> PGDState:
        norm = norms.get(self.norm)
        climbed = objective(classifier, self.loss, state.goal)
        grad, logits = jax.grad(climbed, has_aux=True)(state.x)
        g = state.g
        if self.momentum:
            g = self.momentum * g + grad / jnp.maximum(jnp.sum(jnp.abs(grad)), 1e-30)
        direction = norm.direction(g if self.momentum else grad, state.x)
        delta = state.x + self.step_length(state.eps, grad.size) * direction - state.image
        x = norm.moved(state.image, norm.project(delta, state.image, state.eps), state.eps)
        return state._replace(x=x, g=g, found=self.looked_at(state, logits))

    def step_length(self, eps: jax.Array, entries: int) -> jax.Array:
        """alpha, in the units of the norm's direction; `entries` is the size of an image."""
        if norms.get(self.norm).unit:  # entries share a direction of unit L1 length
            return jnp.asarray(entries * (self.relative_step or 6.0))
        default = 0.2 if self.norm == "l1" else 2.5 / self.steps
        return eps * (self.relative_step or default)

    def finished(self, state: PGDState) -> jax.Array:
        return state.found.success
