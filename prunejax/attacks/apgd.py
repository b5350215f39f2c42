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

# With larger budgets: multiples of eps, and the percentage of the steps for each.
STAGES = ((3, 30), (2, 30), (1, 40))
ONLY_IN = {
    "alpha": ("linf", "l2"), "rho": ("linf", "l2"), "share": ("l1",), "larger_budgets": ("l1",),
}  # fmt: skip


class Point(NamedTuple):
    """An iterate x `[...]`, the gradient `[...]` there, and the loss f(x), a scalar."""

    x: jax.Array
    grad: jax.Array
    loss: jax.Array


class Halving(NamedTuple):
    """What the step size hangs on in Linf and L2; all but `previous` are scalars.

    Attributes:
      eta: step size, a distance in the norm.
      previous: `[...]` the iterate before, for the momentum.
      loss: f(previous).
      rises: steps since the last checkpoint that raised the loss.
      halved: whether eta was halved at the last checkpoint.
      highest: the highest loss until the last checkpoint.
    """

    eta: jax.Array
    previous: jax.Array
    loss: jax.Array
    rises: jax.Array
    halved: jax.Array
    highest: jax.Array


class Sparsity(NamedTuple):
    """What the step size hangs on in L1; all are scalars.

    Attributes:
      eta: step size, an L1 distance.
      k: features that a step moves.
      changed: features in which the best iterate differed from the image at the last checkpoint.
    """

    eta: jax.Array
    k: jax.Array
    changed: jax.Array


class APGDState(NamedTuple):
    """State of APGD. `[...]` is the image's shape; other numbers are scalars.

    Attributes:
      image, goal, eps: clean image `[...]`, what is wanted, and the budget.
      step: steps made.
      x: `[...]` the current iterate.
      best: the iterate with the highest loss; in L1 since the budget last changed.
      pace: the step size, and what it hangs on.
      found: the first iterate that was adversarial.
    """

    image: jax.Array
    goal: Goal
    eps: jax.Array
    step: jax.Array
    x: jax.Array
    best: Point
    pace: Halving | Sparsity
    found: Found


@dataclasses.dataclass(frozen=True, kw_only=True)
class APGD(Attack):
    """PGD that starts on the sphere, and goes back to its best point to look more closely.

    In Linf and L2, with P the projection on ball and box and s the steepest direction,

        z = P(x_k + eta s(grad f(x_k)))
        x_{k+1} = P(x_k + alpha (z - x_k) + (1 - alpha) (x_k - x_{k-1}))

    At a few checkpoints that lie ever closer (`windows`), eta, at first 2 eps, is halved and x goes
    back to the best point so far if no more than rho of the steps since the last one raised the
    loss, or if eta was not halved there and the highest loss has not changed since. Croce & Hein
    (2020), "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", algorithm 1. APGD-CE, APGD-DLR and APGD-T are the losses
    "cross_entropy", "dlr", and "dlr" with targets=9.

    In L1 only the k steepest features move, at first a fifth of all, without momentum,

        x_{k+1} = P(x_k + eta s),  s = sign of the gradient's k largest entries, over their number

    At checkpoints every 4 % of the steps, k becomes a share of the number of features that the best
    point changes. Where this number has fallen below 0.95 of the last one, eta = eps and x goes
    back to the best point; else eta <- max(eta / 1.5, eps / 10). Croce & Hein (2021), "Mind the
    box: l1-APGD for sparse adversarial attacks on image classifiers", algorithm 1.

    With few features it can come to rest before the maximum, where all k of them have moved alike;
    restarts help. (Steps in proportion to the gradient do not, but were far weaker on a network.)

    The projection is the exact one on the intersection of ball and box, also in L2, where the
    paper's implementation clips after projecting on the ball. The first adversarial iterate is
    kept, and the last one is looked at too.

    Attributes:
      loss: what is maximised, a key of `losses.LOSSES`.
      alpha: weight of the new step against the momentum, in (0, 1]; the paper's 0.75. Not in L1.
      rho: more than this share of the steps have to raise the loss, in [0, 1]; the paper's 0.75.
        Not in L1.
      share: that share, in (0, 1); L1 only. 0.8 instead of the paper's 2/3: with larger budgets
        every step is a checkpoint, and k would fall too fast. (The authors' code counts features
        that rounding kept from being put back exactly, which slows it down as well.)
      larger_budgets: L1 only: spend 30 % of the steps with a budget of 3 eps and 30 % with 2 eps,
        beginning each stage at the projected best point of the one before. Two steps are spent on
        projecting it, the authors' project besides: of 100 they are not missed, but of 1, 2 or 4
        none is left at eps itself. (To project and to follow the best point's gradient at once was
        far weaker: on Fashion-MNIST 81 or 113 of 793 images were left instead of 56.)

    Raises:
      ValueError: a hyperparameter out of its range, an unknown loss, a norm that it does not
        measure in, or an option that is for other norms.
    """

    norm: str = "linf"
    steps: int = 100
    loss: str = "cross_entropy"
    alpha: float = 0.75
    rho: float = 0.75
    share: float = 0.8
    larger_budgets: bool = False

    supported: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    reference: ClassVar[str] = "Croce & Hein 2020; L1: Croce & Hein 2021"
    entrywise: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        self._numbers("alpha", within="(0, 1]")
        self._numbers("rho", within="[0, 1]")
        self._numbers("share", within="(0, 1)")
        for field in dataclasses.fields(self):
            value, of = getattr(self, field.name), ONLY_IN.get(field.name, (self.norm,))
            if self.norm not in of and value != field.default:
                raise ValueError(
                    f"{field.name} is {value!r} with norm {self.norm!r}; it is for "
                    f"{' and '.join(map(repr, of))}, leave it out."
                )

    def init(self, classifier, image, goal, key, eps) -> APGDState:
        del classifier
        x = self._start(key, image, eps * self._schedule().budgets[0])
        pace = self._sparsity(image, x, eps * self._schedule().budgets[0])
        return APGDState(
            image=image,
            goal=goal,
            eps=eps,
            step=jnp.array(0),
            x=x,
            best=_nowhere(x),
            pace=pace if self.norm == "l1" else _halving(x, eps),
            found=self.nothing_found(image),
        )

    def _start(self, key: jax.Array, image: jax.Array, eps: jax.Array) -> jax.Array:
        """A random point of the sphere, moved into the box."""
        if self.norm == "linf":
            t = jax.random.uniform(key, image.shape, minval=-1.0, maxval=1.0)
        else:
            t = jax.random.normal(key, image.shape)
        if self.norm != "l1":  # there the length of t decides how sparse its projection is
            t = eps * t / jnp.maximum(norms.get(self.norm).distance(t), 1e-12)
        return self._project(image, image + t, eps)

    def step(self, classifier, state: APGDState) -> APGDState:
        climbed = objective(classifier, self.loss, state.goal)
        (loss, logits), grad = jax.value_and_grad(climbed, has_aux=True)(state.x)
        here = Point(state.x, grad, loss)
        best = optax.tree.where(loss > state.best.loss, here, state.best)
        state = state._replace(best=best, found=self.looked_at(state, logits))
        advance = self._sparse_step if self.norm == "l1" else self._momentum_step
        return advance(state, here)._replace(step=state.step + 1)

    def _momentum_step(self, state: APGDState, here: Point) -> APGDState:
        pace, best = state.pace, state.best
        window = jnp.asarray(self._schedule().windows)[state.step]
        checkpoint = window > 0
        rises = pace.rises + (here.loss > pace.loss)
        too_few = rises <= self.rho * window
        no_gain = ~pace.halved & (best.loss <= pace.highest)
        halve = checkpoint & (too_few | no_gain)
        eta = jnp.where(halve, pace.eta / 2, pace.eta)
        x, grad, _ = optax.tree.where(halve, best, here)

        direction = norms.get(self.norm).direction(grad, x)
        z = self._project(state.image, x + eta * direction, state.eps)
        alpha = jnp.where(state.step > 0, self.alpha, 1.0)
        ahead = x + alpha * (z - x) + (1 - alpha) * (x - pace.previous)
        pace = Halving(
            eta=eta,
            previous=x,
            loss=here.loss,
            rises=jnp.where(checkpoint, 0, rises),
            halved=jnp.where(checkpoint, halve, pace.halved),
            highest=jnp.where(checkpoint, best.loss, pace.highest),
        )
        return state._replace(x=self._project(state.image, ahead, state.eps), pace=pace)

    def _sparse_step(self, state: APGDState, here: Point) -> APGDState:
        pace, best, image = state.pace, state.best, state.image
        windows, budgets = map(jnp.asarray, self._schedule())
        eps = state.eps * budgets[state.step + 1]
        checkpoint = windows[state.step] > 0
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
            return state._replace(x=self._project(image, ahead, eps), pace=pace)
        shrunk = budgets[state.step + 1] < budgets[state.step]
        x = self._project(image, jnp.where(shrunk, best.x, ahead), eps)
        return state._replace(
            x=x,
            best=optax.tree.where(shrunk, _nowhere(x), best),
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

    def _project(self, image: jax.Array, x: jax.Array, eps: jax.Array) -> jax.Array:
        norm = norms.get(self.norm)
        return norm.moved(image, norm.project(x - image, image, eps), eps)

    def _schedule(self) -> "Schedule":
        return schedule(self.norm, self.steps, self.larger_budgets)

    def finished(self, state: APGDState) -> jax.Array:
        return state.found.success

    def looked_at(self, state: APGDState, logits: jax.Array) -> Found:
        found = super().looked_at(state, logits)
        if not self.larger_budgets:
            return found
        last = jnp.asarray(self._schedule().budgets)[state.step] == 1
        distance = norms.get(self.norm).distance(state.x - state.image)
        return optax.tree.where(last | (distance <= state.eps), found, state.found)


class Schedule(NamedTuple):
    """What is due at which iterate x_0 ... x_steps; arrays `[steps + 1]`.

    Attributes:
      windows: at a checkpoint, the number of steps since the last one; else 0.
      budgets: multiples of eps.
    """

    windows: np.ndarray
    budgets: np.ndarray


@functools.cache
def schedule(norm: str, steps: int, larger_budgets: bool = False) -> Schedule:
    """The checkpoints, and in L1 the stages.

    In Linf and L2 the first window is 22 % of the steps, each further one 3 % shorter, and at least
    6 % long; in L1 all are 4 % of their stage. All rounded down, but to at least 1 step.
    """

    def percent(share, of):
        return max(share * of // 100, 1)

    windows, budgets = np.zeros(steps + 1, np.int32), np.ones(steps + 1, np.float32)
    if norm != "l1":
        window = checkpoint = percent(22, steps)
        while checkpoint <= steps:
            windows[checkpoint] = window
            window = max(window - percent(3, steps), percent(6, steps))
            checkpoint += window
        return Schedule(windows, budgets)
    begin = 0
    for budget, share in STAGES if larger_budgets else ((1, 100),):
        end = steps if budget == 1 else min(begin + -(-share * steps // 100), steps)
        window = percent(4, end - begin)
        budgets[begin:end] = budget
        windows[begin + window : end : window] = window
        begin = end
    budgets[steps] = 1
    return Schedule(windows, budgets)


def _halving(x: jax.Array, eps: jax.Array) -> Halving:
    return Halving(
        eta=2 * eps,
        previous=x,
        loss=jnp.array(jnp.inf),
        rises=jnp.array(0),
        halved=jnp.array(True),  # so that only the first rule counts at the first checkpoint
        highest=jnp.array(-jnp.inf),
    )


def _nowhere(x: jax.Array) -> Point:
    """What any point is better than."""
    return Point(x, jnp.zeros_like(x), jnp.array(-jnp.inf))


def _changed(image: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.sum((x != image).ravel())
