"""Carlini & Wagner's attack: a penalty on the margin, its weight found by binary search."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from prunejax.attacks import losses
from prunejax.attacks.attack import Attack, Found, Passes, logits_of
from prunejax.attacks.goal import Goal


class CarliniWagnerState(NamedTuple):
    """State of Carlini & Wagner's attack. `[...]` is the image's shape; other numbers are scalars.

    Attributes:
      image, goal: clean image `[...]` and what is wanted.
      round: of the binary search, those that are over.
      iteration: within the round.
      w: `[...]` the image in tanh space.
      adam: count and moments `[...]` of Adam.
      c: weight of the penalty; `lower` was too small, `upper` enough (`inf`: none was yet).
      won: whether an iterate of this round was adversarial.
      checked: the loss at the last look whether it still falls.
      found: the nearest adversarial iterate.
    """

    image: jax.Array
    goal: Goal
    round: jax.Array
    iteration: jax.Array
    w: jax.Array
    adam: optax.OptState
    c: jax.Array
    lower: jax.Array
    upper: jax.Array
    won: jax.Array
    checked: jax.Array
    found: Found


@dataclasses.dataclass(frozen=True, kw_only=True)
class CarliniWagner(Attack):
    """Minimum L2 norm: Adam on the squared norm plus c times the missing margin, without a box.

        min_w ||x(w) - image||_2^2 + c max(kappa - margin(x(w)), 0),   x(w) = (tanh(w) + 1) / 2

    c is multiplied by 10 until an iterate of a round is adversarial, then bisected. Every round
    starts at the clean image. Of 10 rounds or more the authors' code spends the last on `upper`,
    the smallest c that was enough; that is left out, here it bisects like the others.
    Carlini & Wagner (2017), "Towards evaluating the robustness of neural networks", section VI-A.

    Attributes:
      steps: of all rounds together, each gets steps // rounds of them. The authors' code makes
        10000 a round, here 1000 by default.
      rounds: values of c that are tried, 1 to `steps`; 9 in the authors' code.
      learning_rate: of Adam, in tanh space, positive; 0.01 in the authors' code.
      initial_c: the first c, squared L2 distance for a unit of logit, positive; 0.001 in the
        authors' code.
      confidence: kappa, the margin an example must have to be adversarial, in units of the logits,
        at least 0; 0 in the authors' code.
      abort_early: end a round where the loss has not fallen to 0.9999 of what it was a tenth of the
        round before; the example goes on with its next. The authors' code looks at the sum over a
        batch, which falls for longer: here the median distance was 1.02 times as far with it.

    Raises:
      ValueError: a hyperparameter out of its range, or another norm than L2.
    """

    norm: str = "l2"
    steps: int = 9000
    rounds: int = 9
    learning_rate: float = 0.01
    initial_c: float = 1e-3
    confidence: float = 0.0
    abort_early: bool = False

    supported: ClassVar[tuple[str, ...]] = ("l2",)
    draws: ClassVar[bool] = False
    reference: ClassVar[str] = "Carlini & Wagner 2017"
    entrywise: ClassVar[bool] = True
    minimum_norm: ClassVar[bool] = True
    result_passes: ClassVar[Passes] = Passes(0, 0)

    def __post_init__(self):
        super().__post_init__()
        self._integers("rounds", least=1)
        if self.rounds > self.steps:
            raise ValueError(f"rounds is {self.rounds}; at most steps = {self.steps} can be made.")
        self._numbers("learning_rate", "initial_c", within="(0, inf)")
        self._numbers("confidence", within="[0, inf)")

    @property
    def iterations(self) -> int:
        """Steps of a round."""
        return self.steps // self.rounds

    def init(self, classifier, image, goal, key, eps) -> CarliniWagnerState:
        del classifier, key, eps
        w = to_tanh_space(image)
        return CarliniWagnerState(
            image=image,
            goal=goal,
            round=jnp.array(0),
            iteration=jnp.array(0),
            w=w,
            adam=optax.scale_by_adam().init(w),
            c=jnp.array(self.initial_c),
            lower=jnp.array(0.0),
            upper=jnp.array(jnp.inf),
            won=jnp.array(False),
            checked=jnp.array(jnp.inf),
            found=self.nothing_found(image),
        )

    def step(self, classifier, state: CarliniWagnerState) -> CarliniWagnerState:
        # As it comes back from tanh space: to Adam the rounding of a round's start is a gradient.
        clean = from_tanh_space(to_tanh_space(state.image))

        def objective(w):
            x = from_tanh_space(w)
            logits = logits_of(classifier, x)
            margin = losses.margin(logits, state.goal)
            penalty = state.c * jax.nn.relu(self.confidence - margin)
            return jnp.sum(jnp.ravel(x - clean) ** 2) + penalty, (x, logits)

        (loss, (x, logits)), grad = jax.value_and_grad(objective, has_aux=True)(state.w)
        # Whoever heads for a target may also leave the label for a third class.
        reached = losses.margin(logits, state.goal.judged()) >= self.confidence
        adversarial = state.goal.reached(logits) & reached & ~self.finished(state)
        update, adam = optax.scale_by_adam().update(grad, state.adam)

        look = state.iteration % max(1, self.iterations // 10) == 0
        stuck = look & (loss > 0.9999 * state.checked) & self.abort_early
        going_on = state._replace(
            iteration=state.iteration + 1,
            w=state.w - self.learning_rate * update,
            adam=adam,
            won=state.won | adversarial,
            checked=jnp.where(look, loss, state.checked),
            found=self.nearest(state.found, state.image, x, adversarial),
        )
        over = stuck | (going_on.iteration >= self.iterations)
        return optax.tree.where(over, self._next_round(going_on), going_on)

    def _next_round(self, state: CarliniWagnerState) -> CarliniWagnerState:
        """The same search at the clean image again, with the next c."""
        lower, upper, c = next_weight(state.lower, state.upper, state.c, state.won)
        last = state.round + 1 >= self.rounds  # where it ends, it stays
        w = jnp.where(last, state.w, to_tanh_space(state.image))
        return state._replace(
            round=state.round + 1,
            iteration=jnp.array(0),
            w=w,
            adam=optax.scale_by_adam().init(w),
            c=c,
            lower=lower,
            upper=upper,
            won=jnp.array(False),
            checked=jnp.array(jnp.inf),
        )

    def finished(self, state: CarliniWagnerState) -> jax.Array:
        return state.round >= self.rounds

    def iterate(self, state: CarliniWagnerState) -> jax.Array:
        return from_tanh_space(state.w)

    def result(self, classifier, state: CarliniWagnerState) -> Found:
        """What was found; no iterate is left to look at, a round's last is not moved any more."""
        return state.found


def to_tanh_space(image: jax.Array) -> jax.Array:
    """The w with (tanh(w) + 1) / 2 = image, up to 5e-7 at the edges of the box, w = +-7.25."""
    return jnp.arctanh((2 * image - 1) * (1 - 1e-6))


def from_tanh_space(w: jax.Array) -> jax.Array:
    """The image in [0, 1], of the shape of w."""
    return (jnp.tanh(w) + 1) / 2


def next_weight(
    lower: jax.Array, upper: jax.Array, c: jax.Array, won: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The bracket after a round with c, and the next c: ten times it until something was found.

    All scalars; `won` is whether the round found something.
    """
    lower, upper = jnp.where(won, lower, c), jnp.where(won, c, upper)
    return lower, upper, jnp.where(jnp.isinf(upper), 10 * c, (lower + upper) / 2)
