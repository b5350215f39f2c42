"""HopSkipJump: a decision-based attack that estimates the boundary's normal from queries."""

import dataclasses
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from prunejax import norms
from prunejax.attacks import starts
from prunejax.attacks.attack import Attack, Found, Passes, logits_of
from prunejax.attacks.goal import Goal

# Queries of an example made at once, so that memory does not grow with their number.
CHUNK = 32


class HopSkipJumpState(NamedTuple):
    """State of HopSkipJump. `[...]` is the image's shape; other numbers are scalars.

    Attributes:
      image, goal, key: clean image `[...]`, what is wanted, and the key.
      step: iterations made.
      x: `[...]` on the adversarial side of the boundary; the clean image where no start was found.
      found: the nearest such point.
    """

    image: jax.Array
    goal: Goal
    key: jax.Array
    step: jax.Array
    x: jax.Array
    found: Found


@dataclasses.dataclass(frozen=True, kw_only=True)
class HopSkipJump(Attack):
    """Minimum norm along the boundary, from nothing but decisions phi(x) in {-1, 1}.

        u_b random of unit length, delta = ||x - image||_2 / d
        v = mean_b (phi(x + delta u_b) - mean phi) u_b
        x <- x + xi_t v / ||v||_2  in L2,  x + xi_t sign(v)  in Linf
        x <- the boundary between x and the image

    xi_t = ||x - image|| / sqrt(t), halved until x is adversarial; where it never is, x stays. The
    point itself counts as found before it moves on. Chen, Jordan & Wainwright (2020),
    "HopSkipJumpAttack: a query-efficient decision-based attack", algorithm 2. Three changes: the
    start is on the shortest of several ways to noise images (nothing is found where there is none);
    delta is measured in L2 also for Linf, where the paper's is so small, ||x - image||_inf / d,
    that float32 logits hardly change; and the boundary is found to theta = 2^-halvings of the way,
    for float32 cannot follow the paper's d^-1.5 (in Linf d^-2) far. Where theta is more than d^-1.5
    (by default: beyond 1,625 features), delta is sqrt(d) theta ||x - image||_2, to which in the
    paper the above is equal: x is so far from the boundary that smaller moves would see one side.

    The queries of an estimate grow in proportion to sqrt(t), and are `queries` on average: after t
    steps round(queries steps (t / steps)^1.5) have been made. The network sees 32 of an example at
    a time, so 32 times the runner's batch size; what fills up the last of these has no say and is
    not counted. Decisions do not tell which class is near: `targets`, which would be restarts, are
    refused.

    Attributes:
      steps: 64 as in the authors' code.
      queries: in the estimate of a normal, on average over the steps, at least 1. With the default
        64 steps begin with about 70 and end with about 800, the authors' 100 sqrt(t).
      halvings: of a way to the boundary, at least 1. 16 find it to 1.5e-5 of the distance.
      shortenings: xi is halved at most so often, at least 1.
      tries: points on the way to noise images, to choose the start from, at least 1.

    Raises:
      ValueError: a hyperparameter out of its range, a norm that it does not measure in, or
        `targets`.
    """

    norm: str = "l2"
    steps: int = 64
    queries: int = 533
    halvings: int = 16
    shortenings: int = 10
    tries: int = 50

    supported: ClassVar[tuple[str, ...]] = ("l2", "linf")
    reference: ClassVar[str] = "Chen, Jordan & Wainwright 2020"
    minimum_norm: ClassVar[bool] = True
    uses_gradients: ClassVar[bool] = False
    result_passes: ClassVar[Passes] = Passes(0, 0)

    def __post_init__(self):
        super().__post_init__()
        self._integers("queries", "halvings", "shortenings", "tries", least=1)
        if self.targets:
            raise ValueError(
                f"targets is {self.targets}; HopSkipJump sees decisions only and cannot head for a "
                "class that need not be reached: use restarts, or targeted=True."
            )

    @property
    def init_passes(self) -> Passes:
        return Passes(self.tries + self.halvings, 0)

    @property
    def step_passes(self) -> Passes:
        return Passes(self.queries + self.shortenings + 1 + self.halvings, 0)

    def init(self, classifier, image, goal, key, eps) -> HopSkipJumpState:
        del eps
        found = starts.boundary_start(
            self, classifier, image, goal, jax.random.fold_in(key, 0), self.tries, self.halvings
        )
        return HopSkipJumpState(image, goal, key, jnp.array(0), found.image, found)

    def step(self, classifier, state: HopSkipJumpState) -> HopSkipJumpState:
        image, goal, norm = state.image, state.goal, norms.get(self.norm)
        t = state.step + 1
        v = self._normal(classifier, state)
        direction = jnp.sign(v) if self.norm == "linf" else norm.direction(v, state.x)
        xi = norm.distance(state.x - image) / jnp.sqrt(t)

        def shorten(number, best):
            x = jnp.clip(state.x + 0.5**number * xi * direction, 0, 1)
            adversarial = goal.reached(logits_of(classifier, x))
            found, farthest = best
            return found | adversarial, jnp.where(found | ~adversarial, farthest, x)

        nowhere = (jnp.array(False), state.x)
        _, x = jax.lax.fori_loop(0, self.shortenings + 1, shorten, nowhere)
        x = starts.pull_to_boundary(self.norm, classifier, image, goal, x, self.halvings)
        found = self.nearest(state.found, image, x, state.found.success)
        return state._replace(step=t, x=x, found=found)

    def queries_at(self, step: jax.Array) -> jax.Array:
        """How many queries the estimate of a step, counted from 0, makes; both integer scalars."""
        after = jnp.stack([step, step + 1]) / self.steps
        made = jnp.round(self.queries * self.steps * after**1.5).astype(int)
        return made[1] - made[0]

    def _normal(self, classifier, state: HopSkipJumpState) -> jax.Array:
        """Estimate of the boundary's normal at x, towards the adversarial side; its length is free.

        An entry that the box clips counts with what is left of its move.
        """
        x, size = state.x, state.x.size
        key = jax.random.fold_in(state.key, state.step + 1)
        # No smaller than what the bisection leaves, or x would see its own side only.
        parts = min(size, 2.0 ** min(self.halvings, 64) / math.sqrt(size))
        delta = norms.get("l2").distance(x - state.image) / parts
        number = self.queries_at(state.step)

        def ask(chunk, sums):
            shape = (CHUNK, size)
            own_key = jax.random.fold_in(key, chunk)
            if self.norm == "linf":
                u = jax.random.uniform(own_key, shape, minval=-1.0, maxval=1.0)
            else:
                u = jax.random.normal(own_key, shape)
            u = u / jnp.sqrt(jnp.sum(u**2, axis=1, keepdims=True))
            points = jnp.clip(x.ravel() + delta * u, 0, 1)
            reached = state.goal.reached(classifier(points.reshape(CHUNK, *x.shape)))
            asked = 1.0 * (chunk * CHUNK + jnp.arange(CHUNK) < number)
            phi = jnp.where(reached, asked, -asked)
            moves = points - x.ravel()
            terms = (phi @ moves, asked @ moves, jnp.sum(phi))
            return jax.tree.map(jnp.add, sums, terms)

        nothing = (jnp.zeros(size), jnp.zeros(size), jnp.array(0.0))
        chunks = -(-number // CHUNK)
        weighted, plain, balance = jax.lax.fori_loop(0, chunks, ask, nothing)
        # Where all decisions agree, the differences from their mean would all be zero.
        mean = jnp.where(jnp.abs(balance) == number, 0.0, balance / jnp.maximum(number, 1))
        return (weighted - mean * plain).reshape(x.shape)

    def finished(self, state: HopSkipJumpState) -> jax.Array:
        return ~state.found.success

    def result(self, classifier, state: HopSkipJumpState) -> Found:
        del classifier  # every point was looked at when it was made
        return state.found
