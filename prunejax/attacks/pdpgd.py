"""Primal-dual proximal gradient descent: a minimum-L1 attack with a learned weight of the norm."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from prunejax.attacks import losses
from prunejax.attacks.attack import Attack, Found, logits_of
from prunejax.attacks.goal import Goal

# Adam's decay rates of the two moments, and what keeps it from dividing by zero.
B1, B2, ADAM_EPS = 0.9, 0.999, 1e-8
# The proximal operator in Adam's metric: at most that many iterations, to this relative change.
PROXIMAL_STEPS, PROXIMAL_TOLERANCE = 5, 1e-2


class PDPGDState(NamedTuple):
    """State of PDPGD. `[...]` is the image's shape; other numbers are scalars.

    Attributes:
      image, goal: clean image `[...]` and what is wanted.
      step: steps made.
      delta: `[...]` the perturbation, exact zeros where it is sparse.
      adam: count and moments `[...]` of Adam.
      log_ratio: log(lambda_1 / lambda_0), how much more the margin weighs than the norm.
      weights: `[2]` running mean of (lambda_0, lambda_1), which sum to 1.
      found: the nearest adversarial iterate.
    """

    image: jax.Array
    goal: Goal
    step: jax.Array
    delta: jax.Array
    adam: optax.ScaleByAdamState
    log_ratio: jax.Array
    weights: jax.Array
    found: Found


@dataclasses.dataclass(frozen=True, kw_only=True)
class PDPGD(Attack):
    """Minimum L1 norm as a game: one player moves delta, the other weighs norm against margin.

        min_delta max_lambda  lambda_0 ||delta||_1 + lambda_1 softplus(-margin(image + delta))
        delta <- clip(delta - eta Adam(grad softplus(-margin)))
        delta <- prox of (lambda_0 / lambda_1) eta ||.||_1 in the metric of Adam, within the box
        log(lambda_1 / lambda_0) <- it - theta  where adversarial, else  it + theta

    eta decays geometrically, theta linearly to a tenth. The multipliers in force are running means.
    Matyasko & Chau (2021), "PDPGD: Primal-dual proximal gradient descent adversarial attack",
    with the optimiser of Melchior et al. (2019), "Proximal Adam: robust adaptive update scheme for
    constrained optimization".

    Attributes:
      steps: 500 as in adversarial-library, from which all defaults are.
      learning_rate: eta at the start, about how far an entry moves in a step, in units of the
        pixels' range; positive; 0.1.
      learning_rate_decay: eta at the end as a share of it, in (0, 1]; 0.01.
      dual_rate: theta at the start, by how much the logarithm of the ratio moves in a step;
        positive; 0.1.
      dual_mean: share of the old multipliers in the running mean, in [0, 1); 0.9.
      initial_ratio: lambda_0 / lambda_1 at the start, in (1e-6, 1e6); 0.01.

    Raises:
      ValueError: a hyperparameter out of its range, or another norm than L1.
    """

    norm: str = "l1"
    steps: int = 500
    learning_rate: float = 0.1
    learning_rate_decay: float = 0.01
    dual_rate: float = 0.1
    dual_mean: float = 0.9
    initial_ratio: float = 0.01

    supported: ClassVar[tuple[str, ...]] = ("l1",)
    draws: ClassVar[bool] = False
    reference: ClassVar[str] = "Matyasko & Chau 2021"
    entrywise: ClassVar[bool] = True
    minimum_norm: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        self._numbers("learning_rate", "dual_rate", within="(0, inf)")
        self._numbers("learning_rate_decay", within="(0, 1]")
        self._numbers("dual_mean", within="[0, 1)")
        self._numbers("initial_ratio", within="(1e-6, 1e6)")

    def init(self, classifier, image, goal, key, eps) -> PDPGDState:
        del classifier, key, eps
        delta = jnp.zeros_like(image)
        log_ratio = -jnp.log(jnp.array(self.initial_ratio))
        return PDPGDState(
            image=image,
            goal=goal,
            step=jnp.array(0),
            delta=delta,
            adam=optax.scale_by_adam(B1, B2, ADAM_EPS).init(delta),
            log_ratio=log_ratio,
            weights=multipliers(log_ratio),
            found=self.nothing_found(image),
        )

    def step(self, classifier, state: PDPGDState) -> PDPGDState:
        def objective(delta):
            logits = logits_of(classifier, state.image + delta)
            return jax.nn.softplus(-losses.margin(logits, state.goal)), logits

        grad, logits = jax.grad(objective, has_aux=True)(state.delta)
        margin = losses.margin(logits, state.goal.judged())
        found = self.looked_at(state, logits)

        eta = self.learning_rate * self.learning_rate_decay ** (state.step / self.steps)
        update, adam = optax.scale_by_adam(B1, B2, ADAM_EPS).update(grad, state.adam)
        low, high = -state.image, 1 - state.image
        delta = jnp.clip(state.delta - eta * update, low, high)
        metric = jnp.sqrt(adam.nu / (1 - B2**adam.count)) + ADAM_EPS
        weight = eta * state.weights[0] / state.weights[1]
        delta = proximal(delta, metric, weight, low, high)

        share = state.step / max(1, self.steps - 1)
        theta = self.dual_rate * (1 - 0.9 * share)
        limit = jnp.log(1e6)
        log_ratio = jnp.clip(state.log_ratio - theta * jnp.sign(margin), -limit, limit)
        weights = self.dual_mean * state.weights + (1 - self.dual_mean) * multipliers(log_ratio)
        return PDPGDState(
            state.image, state.goal, state.step + 1, delta, adam, log_ratio, weights, found
        )

    def finished(self, state: PDPGDState) -> jax.Array:
        return jnp.array(False)

    def iterate(self, state: PDPGDState) -> jax.Array:
        return jnp.clip(state.image + state.delta, 0, 1)


def multipliers(log_ratio: jax.Array) -> jax.Array:
    """`[2]` lambda_0 and lambda_1, positive with sum 1, from the log of lambda_1 / lambda_0."""
    return jax.nn.softmax(jnp.stack([jnp.zeros_like(log_ratio), log_ratio]))


def proximal(
    delta: jax.Array, metric: jax.Array, weight: jax.Array, low: jax.Array, high: jax.Array
) -> jax.Array:
    """About argmin_z weight ||z||_1 + sum_i metric_i (z_i - delta_i)^2 / 2 with low <= z <= high.

    By proximal gradient steps of one length for all entries, 1 / max(metric), from `delta` on. Only
    a few are made, as published: where they end, entries with a small metric are cut much more.

    Args:
      delta, metric: `[...]`; the metric is positive.
      weight: of the L1 norm, a scalar.
      low, high: `[...]` the box around the image, as perturbations.

    Returns:
      `[...]` the z, exact zeros where it is sparse.
    """
    largest = jnp.max(metric)

    def iterate(_, carry):
        z, moving = carry
        forward = z - metric / largest * (z - delta)
        shrunk = jnp.sign(forward) * jax.nn.relu(jnp.abs(forward) - weight / largest)
        new = jnp.where(moving, jnp.clip(shrunk, low, high), z)
        change, size = (jnp.sqrt(jnp.sum(jnp.ravel(v) ** 2)) for v in (new - z, new))
        return new, moving & (change > PROXIMAL_TOLERANCE * size)

    return jax.lax.fori_loop(0, PROXIMAL_STEPS, iterate, (delta, jnp.array(True)))[0]
