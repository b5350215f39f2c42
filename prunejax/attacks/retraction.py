"""What a minimum-norm attack found, drawn back towards the clean image as far as it still fools."""

import dataclasses

import jax
import jax.numpy as jnp

from prunejax import norms
from prunejax.attacks.attack import Attack, Found, Passes, logits_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retracting(Attack):
    """A minimum-norm attack whose iterates lie beside the boundary, and whose result on it.

    Steps of a given length end where they happen to end: on a robust network 2 to 7 % beyond the
    boundary. So the ball is bisected onto which the perturbation found can be projected:

        t <- (low + high) / 2,  delta' = P_t(delta),  high starts at ||delta|| and low at 0
        delta <- delta', high <- ||delta'||  where that is adversarial, else  low <- t

    Attributes:
      retractions: halvings after the last step, a forward pass each, at least 0; 0 is the paper's
        algorithm alone. 10 leave a thousandth of the distance.

    Raises:
      ValueError: `retractions` that is no such number.
    """

    retractions: int = 10

    def __post_init__(self):
        super().__post_init__()
        self._integers("retractions", least=0)

    def passes(self, classes: int) -> tuple[Passes, Passes, Passes]:
        init, step, result = super().passes(classes)
        return init, step, result._replace(forwards=result.forwards + self.retractions)

    def result(self, classifier, state) -> Found:
        norm, image = norms.get(self.norm), state.image

        def halve(_, bracket):
            low, best = bracket
            t = (low + best.distance) / 2
            x = self.allowed(image + norm.project(best.image - image, image, t))
            adversarial = best.success & state.goal.reached(logits_of(classifier, x))
            nearer = self.nearest(best, image, x, adversarial)
            return jnp.where(nearer.distance < best.distance, low, t), nearer

        bracket = jnp.float32(0), super().result(classifier, state)
        return jax.lax.fori_loop(0, self.retractions, halve, bracket)[1]

    def allowed(self, x: jax.Array) -> jax.Array:
        """The image `[...]` that stands for `x` where only some are allowed: all in the box are."""
        return jnp.clip(x, 0, 1)
