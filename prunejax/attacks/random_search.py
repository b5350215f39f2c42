"""Random search, what the black-box attacks share: propose, query, keep what is better."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prunejax.attacks import losses
from prunejax.attacks.attack import Attack, Found, Passes, logits_of
from prunejax.attacks.goal import Goal

# The published schedules are given for this many queries.
SCHEDULE_QUERIES = 10_000


class Point(NamedTuple):
    """Where the search is.

    Attributes:
      x: `[...]` the image, within ball and box.
      chosen: `[units]` which units may differ from the clean image; None where that is not needed.
    """

    x: jax.Array
    chosen: jax.Array | None = None


class RandomSearchState(NamedTuple):
    """State of a random search.

    Attributes:
      image, goal, eps, key: clean image `[...]`, what is wanted, the budget in the attack's norm,
        and the example's key.
      common: the key of what all examples of a batch draw in common.
      step: proposals made.
      best: the start, or the proposal accepted last.
      loss: its loss, a scalar as all that follows.
      adversarial: whether it is what is wanted; nothing is accepted from then on.
    """

    image: jax.Array
    goal: Goal
    eps: jax.Array
    key: jax.Array
    common: jax.Array
    step: jax.Array
    best: Point
    loss: jax.Array
    adversarial: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomSearch(Attack):
    """Proposes random changes and keeps those that raise the loss or succeed. No gradients.

    Attributes:
      steps: proposals, a query (forward pass) each; the start costs one more.
      loss: what is raised, a key of `losses.LOSSES`.
      rescale_schedule: stretch or squeeze the schedule, made for 10,000 queries, to `steps`.

    Raises:
      ValueError: a hyperparameter out of its range, or an unknown loss.
    """

    loss: str = "margin"
    rescale_schedule: bool = False

    uses_gradients: ClassVar[bool] = False
    init_passes: ClassVar[Passes] = Passes(1, 0)
    step_passes: ClassVar[Passes] = Passes(1, 0)
    result_passes: ClassVar[Passes] = Passes(0, 0)

    def start(self, key: jax.Array, image: jax.Array, eps: jax.Array) -> Point:
        """A random point within ball and box."""
        raise NotImplementedError

    def propose(self, key: jax.Array, state: RandomSearchState) -> Point:
        """A random change of `state.best`, within ball and box."""
        raise NotImplementedError

    def init(self, classifier, image, goal, key, eps) -> RandomSearchState:
        start = self.start(jax.random.fold_in(key, 0), image, eps)
        loss, adversarial = self._judge(goal, logits_of(classifier, start.x))
        return RandomSearchState(
            image, goal, eps, key, key, jnp.array(0), start, loss, adversarial
        )  # fmt: skip

    def sharing(self, state: RandomSearchState, key: jax.Array) -> RandomSearchState:
        return state._replace(common=key)

    def step(self, classifier, state: RandomSearchState) -> RandomSearchState:
        proposal = self.propose(jax.random.fold_in(state.key, state.step + 1), state)
        logits = logits_of(classifier, proposal.x)
        accepted, state = self.judged(state, logits)
        return state._replace(best=optax.tree.where(accepted, proposal, state.best))

    def judged(
        self, state: RandomSearchState, logits: jax.Array
    ) -> tuple[jax.Array, RandomSearchState]:
        """Whether a proposal with these logits `[C]` is accepted, and the state but for `best`."""
        loss, reached = self._judge(state.goal, logits)
        accepted = ~state.adversarial & (reached | (loss > state.loss))
        return accepted, state._replace(
            step=state.step + 1,
            loss=jnp.where(accepted, loss, state.loss),
            adversarial=state.adversarial | reached,
        )

    def finished(self, state: RandomSearchState) -> jax.Array:
        return state.adversarial

    def iterate(self, state: RandomSearchState) -> jax.Array:
        return state.best.x

    def result(self, classifier, state: RandomSearchState) -> Found:
        del classifier  # the last iterate has been looked at
        nothing = self.nothing_found(state.image)
        return self.nearest(nothing, state.image, state.best.x, state.adversarial)

    def _judge(self, goal: Goal, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        loss = losses.LOSSES[self.loss](logits, goal)
        # Anything is better than NaN: a search that begins there would never leave.
        return jnp.where(jnp.isnan(loss), -jnp.inf, loss), goal.reached(logits)

    def query_of_schedule(self, query: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
        """Which query of a run of 10,000 this one stands for."""
        if not self.rescale_schedule:
            return query
        return (query * np.float32(SCHEDULE_QUERIES / self.steps) + np.float32(1e-3)) // 1


def flipped(key: jax.Array, corner: jax.Array) -> jax.Array:
    """Another corner of the cube than the one given, booleans `[C]`, uniformly at random.

    Leading axes are flipped alike. Of more than 30 entries only the first 30 are flipped.
    """
    channels = jnp.arange(corner.shape[-1])
    number = jax.random.randint(key, (), 1, 2 ** min(len(channels), 30))
    flips = (number >> jnp.minimum(channels, 30)) & 1
    return corner ^ (flips == 1)
