"""FAB: along linearised decision boundaries, biased towards the clean image."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from prunejax import norms
from prunejax.attacks.attack import Attack, Found, Passes, logits_of
from prunejax.attacks.goal import Goal
from prunejax.attacks.rivals import how_many, rivals

# Boundaries are aimed at so far beyond, in shares of the range of the logits and of the largest.
# Exactly on them rounding decides: iterates come to rest on the wrong side, or a fresh forward pass
# sees another prediction. What all logits have in common moves none, and is rounded all the same.
BEYOND, ROUNDING = 1e-5, 2.0**-22


class FABState(NamedTuple):
    """State of FAB. `[...]` is the image's shape; other numbers are scalars.

    Attributes:
      image, goal: clean image `[...]` and what is wanted.
      rivals: `[K]` the classes whose boundary is considered.
      x: `[...]` the current iterate.
      found: the nearest adversarial iterate.
    """

    image: jax.Array
    goal: Goal
    rivals: jax.Array
    x: jax.Array
    found: Found


@dataclasses.dataclass(frozen=True, kw_only=True)
class FAB(Attack):
    """Fast adaptive boundary attack: minimum norm by projections on linearised boundaries.

        f_k = z_k - z_y,  w_k = grad f_k(x),  s = argmin_k |f_k| / ||w_k||_dual
        H = {v: f_s + <w_s, v - x> = 0};  d, d0: shortest from x and from the image to H, in the box
        alpha = min(||d|| / (||d|| + ||d0||), alpha_max)
        x <- clip((1 - alpha) (x + eta d) + alpha (image + eta d0))
        x <- image + beta (x - image)  where x is adversarial

    The nearest x that is adversarial is kept, before it is moved back.
    Towards a target t only f_t is looked at, which needs one backward pass a step instead of one
    for each rival: FAB-T is `FAB(targets=9)`. Where a prediction of t is wanted, y is the strongest
    other class at x. Croce & Hein (2020), "Minimally distorted adversarial examples with a fast
    adaptive boundary attack", algorithm 1, without its final search.

    Attributes:
      candidates: only that many of the other classes are rivals, those likeliest at the image; at
        least 1. The default is all of 10 classes; the paper takes all of any number.
      alpha_max: the weight of the projection of the clean image is at most this, in [0, 1]; the
        default is the paper's.
      eta: how far to go along the projections, at least 1; beyond 1 crosses the boundary. 1.05 as
        in the paper.
      beta: the share of an adversarial perturbation that is kept for the next step, in (0, 1]; 0.9
        as in the paper.
      random_start: begin at a random point within half the distance to the boundary linearised at
        the image, so that restarts differ, instead of at the image. The paper's restarts use half
        of the distance found before.

    Raises:
      ValueError: a hyperparameter out of its range, or a norm that it does not measure in.
    """

    norm: str = "linf"
    steps: int = 100
    candidates: int = 9
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    random_start: bool = False

    supported: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    reference: ClassVar[str] = "Croce & Hein 2020 (FAB)"
    entrywise: ClassVar[bool] = True
    minimum_norm: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        self._integers("candidates", least=1)
        self._numbers("alpha_max", within="[0, 1]")
        self._numbers("eta", within="[1, inf)")
        self._numbers("beta", within="(0, 1]")

    @property
    def draws(self) -> bool:
        return self.random_start

    def passes(self, classes: int) -> tuple[Passes, Passes, Passes]:
        number = how_many(self, classes)
        start = Passes(1, number) if self.random_start else Passes(0, 0)
        return start, Passes(2, number), Passes(0, 0)

    def init(self, classifier, image, goal, key, eps) -> FABState:
        del eps
        classes = rivals(classifier, image, goal, self.candidates)
        state = FABState(image, goal, classes, image, self.nothing_found(image))
        if self.random_start:
            norm = norms.get(self.norm)
            f, w = self._nearest_boundary(classifier, state)
            radius = norm.distance(norm.reach_hyperplane(w, image, -f)) / 2
            state = state._replace(x=jnp.clip(image + norm.random_start(key, image, radius), 0, 1))
        return state

    def step(self, classifier, state: FABState) -> FABState:
        norm, image, x = norms.get(self.norm), state.image, state.x
        f, w = self._nearest_boundary(classifier, state)
        d = norm.reach_hyperplane(w, x, -f)
        d0 = norm.reach_hyperplane(w, image, -f - jnp.sum(w * (image - x)))
        a, a0 = (jnp.maximum(norm.distance(v), 1e-8) for v in (d, d0))
        alpha = jnp.minimum(a / (a + a0), self.alpha_max)
        x = (1 - alpha) * (x + self.eta * d) + alpha * (image + self.eta * d0)
        x = jnp.clip(x, 0, 1)

        adversarial = state.goal.reached(logits_of(classifier, x))
        found = self.nearest(state.found, image, x, adversarial)
        x = jnp.where(adversarial, image + self.beta * (x - image), x)
        return state._replace(x=x, found=found)

    def _nearest_boundary(self, classifier, state: FABState) -> tuple[jax.Array, jax.Array]:
        """The f and w of the rival whose boundary, linearised at x, is nearest without the box."""
        logits, vjp = jax.vjp(lambda x: logits_of(classifier, x), state.x)
        classes = jnp.arange(logits.size)
        reach, leave = classes == state.rivals[:, None], classes == state.goal.source(logits)
        source = jnp.sum(jnp.where(leave, logits, 0.0))
        f = jnp.sum(jnp.where(reach, logits, 0.0), axis=1) - source
        finite = jnp.where(jnp.isfinite(logits), logits, source)  # a masked class may be at -inf
        beyond = BEYOND * jnp.ptp(finite) + ROUNDING * jnp.max(jnp.abs(finite))
        f = jnp.where(f > 0, f, f - beyond)
        (w,) = jax.vmap(vjp)(1.0 * reach - 1.0 * leave)
        if len(state.rivals) == 1:
            return f[0], w[0]
        slope = jax.vmap(norms.get(self.norm).dual_distance)(w)
        nearest = jnp.argmin(jnp.abs(f) / jnp.maximum(slope, 1e-12))
        chosen = jnp.arange(f.size) == nearest  # a mask: gathers are slow on CPUs under vmap
        w = jnp.where(chosen[:, None], w.reshape(f.size, -1), 0.0).sum(axis=0)
        return jnp.sum(jnp.where(chosen, f, 0.0)), w.reshape(state.x.shape)

    def finished(self, state: FABState) -> jax.Array:
        return jnp.array(False)

    def result(self, classifier, state: FABState) -> Found:
        del classifier  # every iterate was looked at when it was made
        return state.found
