"""JSMA: the Jacobian-based saliency map attack, which adds features greedily."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from prunejax import norms
from prunejax.attacks.attack import Attack, Found, Passes, logits_of
from prunejax.attacks.goal import Goal

# Nearer to its end of the box a feature is spent: saliency does not ask how far it can go, and of
# the strokes of MNIST many are at 253 / 255.
END = 0.01


class JSMAState(NamedTuple):
    """State of JSMA. `[...]` is the image's shape; other numbers are scalars.

    Attributes:
      image, goal: clean image `[...]` and what is wanted.
      target: the class to head for.
      x: `[...]` the current iterate.
      domain: `[...]` mask of the features that may still be chosen.
      stuck: no feature of the domain has a positive saliency.
      found: the first iterate that was adversarial.
    """

    image: jax.Array
    goal: Goal
    target: jax.Array
    x: jax.Array
    domain: jax.Array
    stuck: jax.Array
    found: Found


@dataclasses.dataclass(frozen=True, kw_only=True)
class JSMA(Attack):
    """Moves the feature, or the two features, of largest saliency by theta until it succeeds.

        alpha_i = dz_t / dx_i,   beta_i = sum_{j != t} dz_j / dx_i
        (p, q) = argmax alpha |beta|,  alpha = alpha_p + alpha_q > 0,  beta = beta_p + beta_q < 0
        x_p, x_q <- x_p + theta, x_q + theta, clipped to [0, 1]

    With a negative theta alpha has to be negative and beta positive. z are logits, t is the class
    to head for: where none is given, the likeliest but the label at the clean image; `targets`
    tries several. A feature within a hundredth of its end of the box, or moved once, is not chosen
    (in the paper one that has not come to its end may move again; with |theta| = 1 there is none).
    Where no saliency is positive the attack gives up. The last feature that is left moves by
    itself. The best pair is found exactly, without a table of all pairs.

    Papernot et al. (2016), "The limitations of deep learning in adversarial settings", algorithms
    2 and 3. Counts features: each channel value of a pixel by itself. A baseline: it moves in one
    direction only and does not ask how far a feature can go; sigma-zero needs far fewer.

    Attributes:
      steps: the most pairs (or features) to move; 56 as in the paper, where 14.5 % of the 784
        features of an MNIST image may change. It does not grow with the image: of the 3,072 of a
        CIFAR-10 image 56 pairs are 3.6 %, and 14.5 % are 223 pairs.
      theta: how far a feature moves, in units of the pixels' range, in [-1, 1] and not 0; 1 as in
        the paper.
      pairs: choose two features at a time, as in the paper for images; False: one, by
        alpha_i |beta_i|.

    Raises:
      ValueError: a hyperparameter out of its range, or another norm than "l0".
    """

    norm: str = "l0"
    steps: int = 56
    theta: float = 1.0
    pairs: bool = True

    supported: ClassVar[tuple[str, ...]] = ("l0",)
    draws: ClassVar[bool] = False
    reference: ClassVar[str] = "Papernot et al. 2016"
    entrywise: ClassVar[bool] = True
    minimum_norm: ClassVar[bool] = True
    step_passes: ClassVar[Passes] = Passes(1, 2)

    def __post_init__(self):
        super().__post_init__()
        self._numbers("theta", within="[-1, 1]")
        if self.theta == 0:
            raise ValueError(f"theta is {self.theta}; features must move, give another number.")

    def init(self, classifier, image, goal, key, eps) -> JSMAState:
        del key, eps
        clean = logits_of(classifier, image) if goal.clean is None else goal.clean
        target = jnp.asarray(goal.rival(clean))
        domain = image < 1 - END if self.theta > 0 else image > END
        found = self.nothing_found(image)
        return JSMAState(image, goal, target, image, domain, jnp.array(False), found)

    def step(self, classifier, state: JSMAState) -> JSMAState:
        logits, vjp = jax.vjp(lambda x: logits_of(classifier, x), state.x)
        of_target = jax.nn.one_hot(state.target, logits.size)
        ((alpha, beta),) = jax.vmap(vjp)(jnp.stack([of_target, 1 - of_target]))
        found = self.looked_at(state, logits)

        domain = state.domain & ~found.success
        up = jnp.sign(self.theta)
        choose = best_pair if self.pairs else best_single
        chosen = choose(*(part.ravel() for part in (up * alpha, -up * beta, domain)))
        chosen = chosen.reshape(state.x.shape)
        return state._replace(
            x=jnp.where(chosen, jnp.clip(state.x + self.theta, 0, 1), state.x),
            domain=domain & ~chosen,
            stuck=~jnp.any(chosen),
            found=found,
        )

    def finished(self, state: JSMAState) -> jax.Array:
        return state.found.success | state.stuck


def best_single(rise: jax.Array, fall: jax.Array, among: jax.Array) -> jax.Array:
    """Mask `[d]` of the feature with the largest rise * fall, both positive; empty if none is."""
    positive = among & (rise > 0) & (fall > 0)
    score = jnp.where(positive, norms.rescale(rise) * norms.rescale(fall), -1.0)
    return positive & (jnp.arange(rise.size) == jnp.argmax(score))


def best_pair(rise: jax.Array, fall: jax.Array, among: jax.Array) -> jax.Array:
    """Mask `[d]` of the two features with the largest (sum of rise) * (sum of fall).

    Both sums have to be positive. Features are visited one after the other, each compared with all
    that are left. For any lambda > 0,

        R F <= (lambda R + F)^2 / (4 lambda) <= (max_i (lambda rise_i + fall_i))^2 / lambda

    bounds the pairs of unvisited features, so that a few visits prove a pair to be the best:
    lambda = F / R of the best pair so far makes the bound tight. A table of all pairs would have
    d^2 entries an example.

    A feature without another one is chosen by itself.

    Args:
      rise, fall: `[d]`.
      among: `[d]` mask of the features to choose from.

    Returns:
      The mask; empty if nothing is positive.
    """
    rise, fall = (norms.rescale(jnp.where(among, slope, 0.0)) for slope in (rise, fall))
    index = jnp.arange(rise.size)

    def promising(carry):
        left, best, R, F, _ = carry
        weight = F / R
        most = jnp.max(jnp.where(left, weight * rise + fall, -jnp.inf))
        return (most > 0) & (most * most > best * weight)

    def visit(carry):
        left, best, R, F, pair = carry
        p = jnp.argmax(jnp.where(left, F / R * rise + fall, -jnp.inf))
        is_p = index == p
        left = left & ~is_p
        rises = jnp.sum(jnp.where(is_p, rise, 0.0)) + rise
        falls = jnp.sum(jnp.where(is_p, fall, 0.0)) + fall
        score = jnp.where(left & (rises > 0) & (falls > 0), rises * falls, 0.0)
        q = jnp.argmax(score)
        is_q = index == q
        gain = jnp.max(score)
        new = (
            gain,
            jnp.sum(jnp.where(is_q, rises, 0.0)),
            jnp.sum(jnp.where(is_q, falls, 0.0)),
            jnp.stack([p, q]),
        )
        old = (best, R, F, pair)
        return left, *optax.tree.where(gain > best, new, old)

    nothing = (among, jnp.float32(0), jnp.float32(1), jnp.float32(1), jnp.full(2, -1))
    pair = jax.lax.while_loop(promising, visit, nothing)[-1]
    alone = among & (jnp.sum(among) == 1) & (rise > 0) & (fall > 0)
    return alone | (index == pair[0]) | (index == pair[1])
