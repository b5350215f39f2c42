"""sigma-zero: a minimum-L0 attack by gradient descent on a smooth stand-in for the L0 norm."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from prunejax import norms
from prunejax.attacks import losses
from prunejax.attacks.attack import Found, logits_of
from prunejax.attacks.goal import Goal
from prunejax.attacks.retraction import Retracting


class SigmaZeroState(NamedTuple):
    """State of sigma-zero. `[...]` is the image's shape; other numbers are scalars.

    Attributes:
      image, goal: clean image `[...]` and what is wanted.
      step: steps made.
      delta: `[...]` the perturbation, exact zeros where it is sparse.
      adam: count and moments `[...]` of Adam.
      tau: what is smaller in `delta` is set to zero.
      found: the sparsest adversarial iterate.
    """

    image: jax.Array
    goal: Goal
    step: jax.Array
    delta: jax.Array
    adam: optax.OptState
    tau: jax.Array
    found: Found


@dataclasses.dataclass(frozen=True, kw_only=True)
class SigmaZero(Retracting):
    """Fewest changed features, or pixels: Adam on margin plus smoothed L0, adaptive threshold.

        L(delta) = max(z_y - max_{k != y} z_k, 0) + 1/d sum_i delta_i^2 / (delta_i^2 + sigma)
        delta <- clip(delta - eta Adam(grad L / ||grad L||_inf))
        tau <- tau + t eta  where delta was adversarial before the step, else  tau - t eta
        delta[|delta| < tau] <- 0

    eta decays from `learning_rate` to a tenth of it by a cosine; tau stays in [0, 1]. "l0" counts
    features: each channel value of a pixel by itself. In "l0_pixels", which the paper does not
    have, delta_i is a pixel and |delta_i| the L2 norm of its channels. Cina et al. (2025),
    "sigma-zero: gradient-based optimization of l0-norm adversarial examples", algorithm 1; the
    defaults of learning rate, sigma and thresholds are the authors'. In the end the smallest
    changes are taken back as far as that goes (`Retracting`).

    On linear networks of 2,304 features one run ends within 1.25 times the fewest. Where those are
    three or fewer none may be wrong, and what is chosen early is not always undone: with 35
    features that takes `random_start` and 15 restarts.

    Attributes:
      steps: 1000 as in tables of the paper; 100 by default in the authors' code.
      learning_rate: eta at the start, about how far an entry moves in a step, in units of the
        pixels' range; positive.
      sigma: smoothness of the stand-in, positive: an entry of sqrt(sigma) counts half.
      tau: threshold at the start, in units of the pixels' range, in [0, 1].
      tau_step: t, positive: tau moves by t eta a step, up or down, whatever it is.
      random_start: begin at a uniformly random image, so that restarts differ, instead of at the
        clean one as the paper does.
      retractions: halvings of the way back, at least 0; the paper has none.

    Raises:
      ValueError: a hyperparameter out of its range, or a norm that counts nothing.
    """

    norm: str = "l0"
    steps: int = 1000
    learning_rate: float = 1.0
    sigma: float = 1e-3
    tau: float = 0.3
    tau_step: float = 0.01
    random_start: bool = False

    supported: ClassVar[tuple[str, ...]] = ("l0", "l0_pixels")
    reference: ClassVar[str] = "Cina et al. 2025"
    entrywise: ClassVar[bool] = True
    minimum_norm: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        self._numbers("learning_rate", "sigma", "tau_step", within="(0, inf)")
        self._numbers("tau", within="[0, 1]")

    @property
    def draws(self) -> bool:
        return self.random_start

    def init(self, classifier, image, goal, key, eps) -> SigmaZeroState:
        del classifier, eps
        delta = jnp.zeros_like(image)
        if self.random_start:
            delta = jax.random.uniform(key, image.shape) - image
        return SigmaZeroState(
            image=image,
            goal=goal,
            step=jnp.array(0),
            delta=delta,
            adam=optax.scale_by_adam().init(delta),
            tau=jnp.array(self.tau),
            found=self.nothing_found(image),
        )

    def step(self, classifier, state: SigmaZeroState) -> SigmaZeroState:
        units = norms.get(self.norm).flatten

        def objective(delta):
            logits = logits_of(classifier, state.image + delta)
            shortfall = jax.nn.relu(-losses.margin(logits, state.goal))
            squares = jnp.sum(units(delta) ** 2, axis=1)
            return shortfall + jnp.mean(squares / (squares + self.sigma)), logits

        grad, logits = jax.grad(objective, has_aux=True)(state.delta)
        adversarial = state.goal.reached(logits)
        found = self.looked_at(state, logits)

        grad = grad / jnp.maximum(jnp.max(jnp.abs(grad)), 1e-12)
        update, adam = optax.scale_by_adam().update(grad, state.adam)
        delta = state.delta - self._eta(state.step) * update
        delta = jnp.clip(state.image + delta, 0, 1) - state.image
        change = self.tau_step * self._eta(state.step + 1)
        tau = jnp.clip(state.tau + jnp.where(adversarial, change, -change), 0, 1)
        tiny = jnp.sum(units(delta) ** 2, axis=1, keepdims=True) < tau**2
        delta = jnp.where(tiny, 0.0, units(delta)).reshape(delta.shape)
        return state._replace(step=state.step + 1, delta=delta, adam=adam, tau=tau, found=found)

    def _eta(self, step: jax.Array) -> jax.Array:
        return optax.cosine_decay_schedule(self.learning_rate, self.steps, alpha=0.1)(step)

    def finished(self, state: SigmaZeroState) -> jax.Array:
        return jnp.array(False)

    def iterate(self, state: SigmaZeroState) -> jax.Array:
        return state.image + state.delta
