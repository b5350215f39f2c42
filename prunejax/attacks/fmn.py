"""Fast minimum-norm attack: gradient steps inside a ball that shrinks and grows, in every norm."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from prunejax import norms
from prunejax.attacks.attack import Found, objective
from prunejax.attacks.goal import Goal
from prunejax.attacks.retraction import Retracting


class FMNState(NamedTuple):
    """State of FMN. `[...]` is the image's shape; other numbers are scalars.

    Attributes:
      image, goal: clean image `[...]` and what is wanted.
      step: steps made.
      x: `[...]` the current iterate, image + delta.
      eps: radius of the ball, in the norm.
      found: the nearest adversarial iterate.
    """

    image: jax.Array
    goal: Goal
    step: jax.Array
    x: jax.Array
    eps: jax.Array
    found: Found


@dataclasses.dataclass(frozen=True, kw_only=True)
class FMN(Retracting):
    """Minimum norm: climb the margin L within a ball, and move its radius to the boundary.

        eps <- ||delta|| + |L| / ||grad L||_dual    while nothing adversarial was seen, then
        eps <- min((1 - gamma) eps, ||delta_best||) where adversarial, else  (1 + gamma) eps
        delta <- P(delta + alpha grad L / ||grad L||_2)

    where P projects on ball and box. In L0 eps starts at 1 and is an integer: it is rounded
    down, but eps moves by at least 1. "l0" counts features: channel values; "l0_pixels" pixels
    with all their channels, which the paper does not have. alpha decays to a hundredth and gamma to
    `gamma_final` by a cosine. Pintor et al. (2021), "Fast minimum-norm adversarial attacks through
    adaptive norm constraints", algorithm 1.

    Changed for images with many entries on the edge of the box: except in L0, entries of the
    gradient that would leave the box count as zero, else the boundary seems nearer than it is; and
    P is exact for the intersection of ball and box, in L2 of sphere and box. And eps overshoots the
    boundary expected by the share `gamma_final`, which a linear network would hit and never cross.
    What was found is drawn back to the boundary in the end (`Retracting`).

    Attributes:
      steps: the paper and AttackBench make 100 to 1000; L0 needs all of those.
      alpha: step length at the start, the L2 norm of a step in every norm, positive; by default 10
        in Linf (AttackBench), where steps along the gradient lengthen few entries, else 1 (the
        paper). In L0 linear networks want 10: with 1 an image in ten ends with up to twice the
        features it needs; of two robust networks 10 needs 9 % fewer on average on one and 8 %
        more on the other.
      gamma: relative change of eps at the start, in (0, 1); 0.05 in the paper.
      gamma_final: relative change of eps at the end, in (0, gamma]; 0.001 in the paper.
      retractions: halvings of the way back, at least 0; the paper has none.

    Raises:
      ValueError: a hyperparameter out of its range, or a norm that it does not measure in.
    """

    norm: str = "l2"
    steps: int = 1000
    alpha: float | None = None
    gamma: float = 0.05
    gamma_final: float = 0.001

    supported: ClassVar[tuple[str, ...]] = ("l0", "l0_pixels", "l1", "l2", "linf")
    draws: ClassVar[bool] = False
    reference: ClassVar[str] = "Pintor et al. 2021"
    entrywise: ClassVar[bool] = True
    minimum_norm: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if self.alpha is not None:
            self._numbers("alpha", within="(0, inf)")
        self._numbers("gamma", within="(0, 1)")
        self._numbers("gamma_final", within="(0, 1)")
        if self.gamma_final > self.gamma:
            raise ValueError(
                f"gamma_final is {self.gamma_final}; it must lie in (0, gamma = {self.gamma}]."
            )

    def init(self, classifier, image, goal, key, eps) -> FMNState:
        del classifier, key, eps
        eps = jnp.array(1.0 if norms.get(self.norm).unit else jnp.inf)
        return FMNState(image, goal, jnp.array(0), image, eps, self.nothing_found(image))

    def step(self, classifier, state: FMNState) -> FMNState:
        norm = norms.get(self.norm)
        climbed = objective(classifier, "margin", state.goal)
        (L, logits), grad = jax.value_and_grad(climbed, has_aux=True)(state.x)
        adversarial = state.goal.reached(logits)
        found = self.looked_at(state, logits)

        gamma = self.gamma_at(state.step)
        if norm.unit:
            eps = radius_in_l0(state.eps, gamma, adversarial, found.distance)
        else:
            blocked = ((state.x >= 1) & (grad > 0)) | ((state.x <= 0) & (grad < 0))
            grad = jnp.where(blocked, 0.0, grad)
            length = norm.distance(state.x - state.image)
            boundary = length + jnp.abs(L) / jnp.maximum(norm.dual_distance(grad), 1e-12)
            boundary = (1 + self.gamma_final) * boundary
            eps = radius(state.eps, gamma, adversarial, found.distance, boundary)
        corner = norm.distance(jnp.maximum(state.image, 1 - state.image))
        eps = jnp.minimum(eps, corner)

        direction = norms.get("l2").direction(grad, state.x)
        delta = state.x + self.alpha_at(state.step) * direction - state.image
        # In L2 the longest of the direction of delta: what a ball leaves inside stays behind eps.
        project = norm.maximizer if self.norm == "l2" else norm.project
        x = jnp.clip(state.image + project(delta, state.image, eps), 0, 1)
        return state._replace(step=state.step + 1, x=x, eps=eps, found=found)

    def alpha_at(self, step: jax.Array) -> jax.Array:
        """Step length of a step, counted from 0."""
        alpha = self.alpha or (10.0 if self.norm == "linf" else 1.0)
        return optax.cosine_decay_schedule(alpha, self.steps, alpha=0.01)(step)

    def gamma_at(self, step: jax.Array) -> jax.Array:
        """Relative change of eps in a step, counted from 0."""
        share = self.gamma_final / self.gamma
        return optax.cosine_decay_schedule(self.gamma, self.steps, alpha=share)(step)

    def finished(self, state: FMNState) -> jax.Array:
        return jnp.array(False)


def radius(
    eps: jax.Array,
    gamma: jax.Array,
    adversarial: jax.Array,
    best: jax.Array,
    boundary: jax.Array,
) -> jax.Array:
    """The next radius in Linf, L2 and L1; all arguments are scalars, lengths in the norm.

    Args:
      eps: the radius now.
      gamma: its relative change, a share.
      adversarial: whether the iterate is.
      best: distance of the nearest adversarial iterate; `inf` if there is none.
      boundary: how far away the boundary is expected, from the clean image.
    """
    unseen = jnp.isinf(best)
    grown = jnp.where(unseen, boundary, (1 + gamma) * eps)
    return jnp.where(adversarial, jnp.minimum((1 - gamma) * eps, best), grown)


def radius_in_l0(
    eps: jax.Array, gamma: jax.Array, adversarial: jax.Array, best: jax.Array
) -> jax.Array:
    """The next number of units; at least one more or less, 0 at least. Arguments as before."""
    fewer = jnp.minimum(jnp.minimum(eps - 1, jnp.floor((1 - gamma) * eps)), best)
    more = jnp.maximum(eps + 1, jnp.floor((1 + gamma) * eps))
    return jnp.maximum(jnp.where(adversarial, fewer, more), 0.0)
