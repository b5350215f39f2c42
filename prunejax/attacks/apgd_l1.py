"""Auto-PGD in L1: sparse steps, as sparse as the best point is."""

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prunejax import norms
from prunejax.attacks.apgd import Point, nowhere, percent, projected
from prunejax.attacks.attack import Attack, Found, objective
from prunejax.attacks.goal import Goal

# With larger budgets: multiples of eps, and the percentage of the steps for each.
STAGES = ((3, 30), (2, 30), (1, 40))


class Sparsity(NamedTuple):
    """What a step hangs on; all are scalars.

    Attributes:
      eta: step size, an L1 distance.
      k: features that a step moves.
      changed: features in which the best iterate differed from the image at the last checkpoint.
    """

    eta: jax.Array
    k: jax.Array
    changed: jax.Array


class APGDL1State(NamedTuple):
    """State of APGD in L1. `[...]` is the image's shape; other numbers are scalars.

    Attributes:
      image, goal, eps: clean image `[...]`, what is wanted, and the budget.
      step: steps made.
      x: `[...]` the current iterate.
      best: the iterate with the highest loss since the budget last changed.
      pace: the step size, and how sparse steps are.
      found: the first iterate that was adversarial.
    """

    image: jax.Array
    goal: Goal
    eps: jax.Array
    step: jax.Array
    x: jax.Array
    best: Point
    pace: Sparsity
    found: Found


@dataclasses.dataclass(frozen=True, kw_only=True)
class APGDL1(Attack):
    """APGD whose steps move the k steepest features only, at first a fifth of all.

        x_{k+1} = P(x_k + eta s),  s = sign of the gradient's k largest entries, over their number

    with P the exact projection on ball and box. At checkpoints every 4 % of the steps, k becomes a
    share of the number of features that the best point changes. Where this number has fallen below
    0.95 of the last one, eta = eps and x goes back to the best point; else
    eta <- max(eta / 1.5, eps / 10). Croce & Hein (2021), "Mind the box: l1-APGD for sparse
    adversarial attacks on image classifiers", algorithm 1.

    With few features it can come to rest before the maximum, where all k of them have moved alike;
    restarts help. (Steps in proportion to the gradient do not, but were far weaker on a network.)
    The first adversarial iterate is kept, and the last one is looked at too.

    Attributes:
      loss: what is maximised, a key of `losses.LOSSES`.
      share: that share, in (0, 1). 0.8 instead of the paper's 2/3: with larger budgets every step
        is a checkpoint, and k would fall too fast. (The authors' code counts features that rounding
        kept from being put back exactly, which slows it down as well.)
      larger_budgets: spend 30 % of the steps with a budget of 3 eps and 30 % with 2 eps, beginning
        each stage at the projected best point of the one before. Two steps are spent on projecting
        it, the authors' project besides: of 100 they are not missed, but of 1, 2 or 4 none is left
        at eps itself. (To project and to follow the best point's gradient at once was far weaker:
        on Fashion-MNIST 81 or 113 of 793 images were left instead of 56.)

    Raises:
      ValueError: a hyperparameter out of its range, an unknown loss, or another norm than L1.
    """

    norm: str = "l1"
    steps: int = 100
    loss: str = "cross_entropy"
    share: float = 0.8
    larger_budgets: bool = False

    supported: ClassVar[tuple[str, ...]] = ("l1",)
    reference: ClassVar[str] = "Croce & Hein 2021"
    entrywise: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        self._numbers("share", within="(0, 1)")

    def init(self, classifier, image, goal, key, eps) -> APGDL1State:
        del classifier
        first = eps * self._schedule().budgets[0]
        # How long the random vector is decides how sparse its projection is.
        x = projected("l1", image, image + jax.random.normal(key, image.shape), first)
        return APGDL1State(
            image=image,
            goal=goal,
            eps=eps,
            step=jnp.array(0),
            x=x,
            best=nowhere(x),
            pace=self._sparsity(image, x, first),
            found=self.nothing_found(image),
        )

    def step(self, classifier, state: APGDL1State) -> APGDL1State:
        climbed = objective(classifier, self.loss, state.goal)
        (loss, logits), grad = jax.value_and_grad(climbed, has_aux=True)(state.x)
        here = Point(state.x, grad, loss)
        best = optax.tree.where(loss > state.best.loss, here, state.best)
        state = state._replace(step=state.step + 1, best=best, found=self.looked_at(state, logits))

        pace, image = state.pace, state.image
        checkpoints, budgets = map(jnp.asarray, self._schedule())
        before, now = budgets[state.step - 1], budgets[state.step]
        eps, checkpoint = state.eps * now, checkpoints[state.step - 1]
        changed = _changed(image, best.x)
        sparser = checkpoint & (changed < 0.95 * pace.changed)
        eta = jnp.where(sparser, eps, jnp.maximum(pace.eta / 1.5, eps / 10))
        pace = optax.tree.where(checkpoint, Sparsity(eta, self._fewer(changed), changed), pace)
        x, grad, _ = optax.tree.where(sparser, best, here)

        slope = jnp.abs(grad.ravel())
        steepest = norms.largest(slope, pace.k).reshape(grad.shape)
        s = jnp.where(steepest, jnp.sign(grad), 0.0)
        ahead = x + pace.eta * s / jnp.maximum(jnp.sum(jnp.abs(s.ravel())), 1.0)
        if not self.larger_budgets:
            return state._replace(x=projected("l1", image, ahead, eps), pace=pace)
        shrunk = now < before
        x = projected("l1", image, jnp.where(shrunk, best.x, ahead), eps)
        return state._replace(
            x=x,
            best=optax.tree.where(shrunk, nowhere(x), best),
            pace=optax.tree.where(shrunk, self._sparsity(image, x, eps), pace),
        )

    def _sparsity(self, image: jax.Array, x: jax.Array, eps: jax.Array) -> Sparsity:
        """Where a stage begins at x; the paper's choice for a random start knows nothing of it."""
        if self.larger_budgets:
            changed = _changed(image, x)
            return Sparsity(eps, self._fewer(changed), changed)
        return Sparsity(eps, jnp.array(-(-image.size // 5)), jnp.array(image.size))

    def _fewer(self, number: jax.Array) -> jax.Array:
        """Rounded up, and at least 1."""
        wanted = jnp.ceil(self.share * number - 1e-3)  # 2/3 of 3 is 2, in float32 too
        return jnp.maximum(wanted.astype(int), 1)

    def _schedule(self) -> "Schedule":
        return schedule(self.steps, self.larger_budgets)

    def finished(self, state: APGDL1State) -> jax.Array:
        return state.found.success

    def looked_at(self, state: APGDL1State, logits: jax.Array) -> Found:
        found = super().looked_at(state, logits)
        if not self.larger_budgets:
            return found
        last = jnp.asarray(self._schedule().budgets)[state.step] == 1
        distance = norms.get("l1").distance(state.x - state.image)
        return optax.tree.where(last | (distance <= state.eps), found, state.found)


class Schedule(NamedTuple):
    """What is due at which iterate x_0 ... x_steps; arrays `[steps + 1]`.

    Attributes:
      checkpoints: whether there is one.
      budgets: multiples of eps.
    """

    checkpoints: np.ndarray
    budgets: np.ndarray


@functools.cache
def schedule(steps: int, larger_budgets: bool = False) -> Schedule:
    """A checkpoint every 4 % of a stage, rounded down, but to at least 1 step."""
    checkpoints, budgets = np.zeros(steps + 1, bool), np.ones(steps + 1, np.float32)
    begin = 0
    for budget, share in STAGES if larger_budgets else ((1, 100),):
        end = steps if budget == 1 else min(begin + -(-share * steps // 100), steps)
        window = percent(4, end - begin)
        budgets[begin:end] = budget
        checkpoints[begin + window : end : window] = True
        begin = end
    budgets[steps] = 1
    return Schedule(checkpoints, budgets)


def _changed(image: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.sum((x != image).ravel())
