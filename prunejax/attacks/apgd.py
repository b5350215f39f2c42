"""Auto-PGD: projected gradient ascent with momentum that chooses its own step sizes."""

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prunejax import norms
from prunejax.attacks.attack import Attack, Found, objective
from prunejax.attacks.goal import Goal


class Point(NamedTuple):
    """An iterate x `[...]`, the gradient `[...]` there, and the loss f(x), a scalar."""

    x: jax.Array
    grad: jax.Array
    loss: jax.Array


class APGDState(NamedTuple):
    """State of APGD. `[...]` is the image's shape; other numbers are scalars.

    Attributes:
      image, goal, eps: clean image `[...]`, what is wanted, and the budget.
      step: steps made.
      x: `[...]` the current iterate.
      best: the iterate with the highest loss.
      eta: step size, a distance in the norm.
      previous: `[...]` the iterate before, for the momentum.
      loss: f(previous).
      rises: steps since the last checkpoint that raised the loss.
      halved: whether eta was halved at the last checkpoint.
      highest: the highest loss until the last checkpoint.
      found: the first iterate that was adversarial.
    """

    image: jax.Array
    goal: Goal
    eps: jax.Array
    step: jax.Array
    x: jax.Array
    best: Point
    eta: jax.Array
    previous: jax.Array
    loss: jax.Array
    rises: jax.Array
    halved: jax.Array
    highest: jax.Array
    found: Found


@dataclasses.dataclass(frozen=True, kw_only=True)
class APGD(Attack):
    """PGD that starts on the sphere, and goes back to its best point to look more closely.

    With P the projection on ball and box and s the steepest direction,

        z = P(x_k + eta s(grad f(x_k)))
        x_{k+1} = P(x_k + alpha (z - x_k) + (1 - alpha) (x_k - x_{k-1}))

    At a few checkpoints that lie ever closer (`windows`), eta, at first 2 eps, is halved and x goes
    back to the best point so far if no more than rho of the steps since the last one raised the
    loss, or if eta was not halved there and the highest loss has not changed since. Croce & Hein
    (2020), "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", algorithm 1. APGD-CE, APGD-DLR and APGD-T are the losses
    "cross_entropy", "dlr", and "dlr" with targets=9. In L1 there is `APGDL1`.

    The projection is the exact one on the intersection of ball and box, also in L2, where the
    paper's implementation clips after projecting on the ball. The first adversarial iterate is
    kept, and the last one is looked at too.

    Attributes:
      loss: what is maximised, a key of `losses.LOSSES`.
      alpha: weight of the new step against the momentum, in (0, 1]; the paper's 0.75.
      rho: more than this share of the steps have to raise the loss, in [0, 1]; the paper's 0.75.

    Raises:
      ValueError: a hyperparameter out of its range, an unknown loss, or a norm that it does not
        measure in.
    """

    norm: str = "linf"
    steps: int = 100
    loss: str = "cross_entropy"
    alpha: float = 0.75
    rho: float = 0.75

    supported: ClassVar[tuple[str, ...]] = ("linf", "l2")
    reference: ClassVar[str] = "Croce & Hein 2020"
    entrywise: ClassVar[bool] = True

    def __post_init__(self):
        if self.norm == "l1":
            raise ValueError(
                "norm is 'l1'; APGD measures in 'linf' or 'l2', and in L1 there is 'apgd_l1'."
            )
        super().__post_init__()
        self._numbers("alpha", within="(0, 1]")
        self._numbers("rho", within="[0, 1]")

    def init(self, classifier, image, goal, key, eps) -> APGDState:
        del classifier
        x = self._start(key, image, eps)
        return APGDState(
            image=image,
            goal=goal,
            eps=eps,
            step=jnp.array(0),
            x=x,
            best=nowhere(x),
            eta=2 * eps,
            previous=x,
            loss=jnp.array(jnp.inf),
            rises=jnp.array(0),
            halved=jnp.array(True),  # so that only the first rule counts at the first checkpoint
            highest=jnp.array(-jnp.inf),
            found=self.nothing_found(image),
        )

    def _start(self, key: jax.Array, image: jax.Array, eps: jax.Array) -> jax.Array:
        """A random point of the sphere, moved into the box."""
        if self.norm == "linf":
            t = jax.random.uniform(key, image.shape, minval=-1.0, maxval=1.0)
        else:
            t = jax.random.normal(key, image.shape)
        t = eps * t / jnp.maximum(norms.get(self.norm).distance(t), 1e-12)
        return projected(self.norm, image, image + t, eps)

    def step(self, classifier, state: APGDState) -> APGDState:
        climbed = objective(classifier, self.loss, state.goal)
        (loss, logits), grad = jax.value_and_grad(climbed, has_aux=True)(state.x)
        here = Point(state.x, grad, loss)
        best = optax.tree.where(loss > state.best.loss, here, state.best)
        found = self.looked_at(state, logits)

        window = jnp.asarray(windows(self.steps))[state.step]
        checkpoint = window > 0
        rises = state.rises + (loss > state.loss)
        too_few = rises <= self.rho * window
        no_gain = ~state.halved & (best.loss <= state.highest)
        halve = checkpoint & (too_few | no_gain)
        eta = jnp.where(halve, state.eta / 2, state.eta)
        x, grad, _ = optax.tree.where(halve, best, here)

        direction = norms.get(self.norm).direction(grad, x)
        z = projected(self.norm, state.image, x + eta * direction, state.eps)
        alpha = jnp.where(state.step > 0, self.alpha, 1.0)
        ahead = x + alpha * (z - x) + (1 - alpha) * (x - state.previous)
        return state._replace(
            step=state.step + 1,
            x=projected(self.norm, state.image, ahead, state.eps),
            best=best,
            eta=eta,
            previous=x,
            loss=loss,
            rises=jnp.where(checkpoint, 0, rises),
            halved=jnp.where(checkpoint, halve, state.halved),
            highest=jnp.where(checkpoint, best.loss, state.highest),
            found=found,
        )

    def finished(self, state: APGDState) -> jax.Array:
        return state.found.success


@functools.cache
def windows(steps: int) -> np.ndarray:
    """`[steps + 1]`: at the iterates that are checkpoints, the steps since the last one; else 0.

    The first window is 22 % of the steps, each further one 3 % shorter, and at least 6 % long. All
    rounded down, but to at least 1 step.
    """
    found = np.zeros(steps + 1, np.int32)
    window = checkpoint = percent(22, steps)
    while checkpoint <= steps:
        found[checkpoint] = window
        window = max(window - percent(3, steps), percent(6, steps))
        checkpoint += window
    return found


def percent(share: int, of: int) -> int:
    """Rounded down, but at least 1."""
    return max(share * of // 100, 1)


def projected(norm: str, image: jax.Array, x: jax.Array, eps: jax.Array) -> jax.Array:
    """The image in ball and box that is nearest to `x`; both `[...]`, and eps a scalar."""
    own = norms.get(norm)
    return own.moved(image, own.project(x - image, image, eps), eps)


def nowhere(x: jax.Array) -> Point:
    """What any point is better than."""
    return Point(x, jnp.zeros_like(x), jnp.array(-jnp.inf))
