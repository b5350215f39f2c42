"""Decoupled direction and norm: a minimum-L2 attack on a sphere that shrinks and grows."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from prunejax import norms
from prunejax.attacks.attack import Found, objective
from prunejax.attacks.goal import Goal
from prunejax.attacks.retraction import Retracting


class DDNState(NamedTuple):
    """State of DDN. `[...]` is the image's shape; other numbers are scalars.

    Attributes:
      image, goal, key: clean image `[...]`, what is wanted, and the key.
      step: steps made.
      x: `[...]` the current iterate, image + delta.
      eps: radius of the sphere, an L2 distance.
      found: the nearest adversarial iterate.
    """

    image: jax.Array
    goal: Goal
    key: jax.Array
    step: jax.Array
    x: jax.Array
    eps: jax.Array
    found: Found


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDN(Retracting):
    """Minimum L2 norm: climb a loss L on a sphere around the clean image.

        eps <- (1 - gamma) eps  where adversarial, else  (1 + gamma) eps
        delta <- delta + alpha grad L / ||grad L||_2
        delta <- clip(eps delta / ||delta||_2)

    alpha, an L2 length, decays from 1 to 0.01 by a cosine; eps is at most the way to the farthest
    corner of the box. Where the gradient is zero a random direction takes its place.
    Rony et al. (2019), "Decoupling direction and norm for efficient gradient-based L2 adversarial
    attacks and defenses", algorithm 1; the loss is another by default, and what was found is drawn
    back to the boundary in the end (`Retracting`).

    Attributes:
      steps: 100 in the authors' code; the paper makes up to 1000.
      gamma: relative change of eps, in (0, 1); 0.05 in the paper.
      init_eps: L2 radius before the first step, positive; 1 in the paper.
      loss: what is climbed, a key of `losses.LOSSES`. The paper's "cross_entropy" pulls towards
        several classes at once: on linear networks of 3 and 10 classes it ends 10 and 30 % above
        the optimum, which the "margin" reaches; of two robust networks its median is 11 % farther
        on one and 1 % nearer on the other.
      levels: round every iterate to images of that many grey levels (256 for bytes, as the paper
        does), at least 2; None for none of it.
      retractions: halvings of the way back to the boundary in the end, at least 0; the paper has
        none, and is within the share gamma of it.

    Raises:
      ValueError: a hyperparameter out of its range, an unknown loss, or another norm than L2.
    """

    norm: str = "l2"
    steps: int = 100
    gamma: float = 0.05
    init_eps: float = 1.0
    loss: str = "margin"
    levels: int | None = None

    supported: ClassVar[tuple[str, ...]] = ("l2",)
    draws: ClassVar[bool] = False  # but where the gradient is zero
    reference: ClassVar[str] = "Rony et al. 2019"
    entrywise: ClassVar[bool] = True
    minimum_norm: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        self._numbers("gamma", within="(0, 1)")
        self._numbers("init_eps", within="(0, inf)")
        if self.levels is not None:
            self._integers("levels", least=2)

    @property
    def may_go_on(self) -> bool:
        return self.levels is None  # it would leave the grid

    def init(self, classifier, image, goal, key, eps) -> DDNState:
        del classifier, eps
        found = self.nothing_found(image)
        return DDNState(image, goal, key, jnp.array(0), image, jnp.array(self.init_eps), found)

    def step(self, classifier, state: DDNState) -> DDNState:
        l2 = norms.get("l2")
        climbed = objective(classifier, self.loss, state.goal)
        grad, logits = jax.grad(climbed, has_aux=True)(state.x)
        adversarial = state.goal.reached(logits)
        found = self.looked_at(state, logits)

        noise = jax.random.normal(jax.random.fold_in(state.key, state.step), grad.shape)
        direction = l2.direction(jnp.where(jnp.any(grad != 0), grad, noise), state.x)
        delta = state.x - state.image + self.alpha_at(state.step) * direction

        eps = state.eps * jnp.where(adversarial, 1 - self.gamma, 1 + self.gamma)
        eps = jnp.minimum(eps, l2.distance(jnp.maximum(state.image, 1 - state.image)))
        delta = eps * l2.direction(delta, state.image)
        x = self.allowed(state.image + delta)
        return state._replace(step=state.step + 1, x=x, eps=eps, found=found)

    def alpha_at(self, step: jax.Array) -> jax.Array:
        """Step length of a step, counted from 0."""
        return optax.cosine_decay_schedule(1.0, self.steps, alpha=0.01)(step)

    def allowed(self, x: jax.Array) -> jax.Array:
        x = jnp.clip(x, 0, 1)
        return x if self.levels is None else jnp.round((self.levels - 1) * x) / (self.levels - 1)

    def finished(self, state: DDNState) -> jax.Array:
        return jnp.array(False)
