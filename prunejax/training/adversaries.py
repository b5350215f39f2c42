"""Adversarial examples for training: `(classifier, images, labels, key) -> images'`, inside jit.

No gradient flows through what an adversary returns.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from prunejax import attacks
from prunejax.classifier import Classifier

Adversary = Callable[[Classifier, jax.Array, jax.Array, jax.Array], jax.Array]


def prescribed(attack: attacks.Attack, eps: float) -> Adversary:
    """The last iterate of `attack` with one budget for all examples (Madry et al. 2018).

    Args:
      attack: a fixed-budget attack whose state has the current iterate `x`, such as PGD.
      eps: the budget, in the attack's norm.

    Raises:
      ValueError: a negative budget, or a minimum-norm attack, which takes none.
    """
    if attack.minimum_norm:
        raise ValueError(f"attack is {attack}; a prescribed budget needs a fixed-budget attack.")
    if not eps >= 0:
        raise ValueError(f"eps is {eps}; a budget is at least 0.")

    def adversary(classifier, images, labels, key):
        return jax.lax.stop_gradient(_last_iterate(attack, classifier, images, labels, key, eps))

    return adversary


def blind(
    *, steps: int = 5, cutoff: float | None = None, scale: float = 0.9, candidates: int = 9
) -> Adversary:
    """Blind adversarial training: a budget for each example, estimated instead of prescribed.

    DeepFool finds the perturbation eta_i that crosses the boundary; its size is measured as the
    root mean square over the d features, ||eta|| = sqrt(mean(eta^2)). Then

        cutoff:  eta_i <- eta_i min(1, delta / ||eta_i||)
        scale:   eta_i <- rho eta_i

    Xie et al. (2020), "Blind Adversarial Pruning", after the authors' code. Their delta and rho are
    not known; the defaults here are delta = mean of ||eta_i|| over the batch (nobody supplies a
    budget) and rho = 0.9 (the default of the authors' function).

    Args:
      steps: DeepFool steps.
      cutoff: delta > 0 in root mean square; None for the batch's mean.
      scale: rho > 0.
      candidates: classes that DeepFool considers.

    Raises:
      ValueError: a cutoff or scale that is not positive.
    """
    if cutoff is not None and not cutoff > 0:
        raise ValueError(f"cutoff is {cutoff}; it must be positive, or None for the batch's mean.")
    if not scale > 0:
        raise ValueError(f"scale is {scale}; it must be positive.")
    attack = attacks.DeepFool(steps=steps, candidates=candidates)

    def adversary(classifier, images, labels, key):
        del labels  # the boundary around the prediction, right or wrong
        predictions = jnp.argmax(classifier(images), axis=-1)
        x = _last_iterate(attack, classifier, images, predictions, key, jnp.inf)
        # A scale above 1 may lead out of the box.
        scaled = jnp.clip(images + cut_and_scale(x - images, cutoff, scale), 0, 1)
        return jax.lax.stop_gradient(scaled)

    return adversary


def cut_and_scale(eta: jax.Array, cutoff: float | None, scale: float) -> jax.Array:
    """The cutoff-scale strategy of `blind` on perturbations `[B, ...]`."""
    features = tuple(range(1, eta.ndim))
    size = jnp.sqrt(jnp.maximum(jnp.mean(eta**2, axis=features, keepdims=True), 1e-12))
    delta = jnp.mean(size) if cutoff is None else cutoff
    return scale * eta * jnp.minimum(1.0, delta / size)


def _last_iterate(attack, classifier, images, labels, key, eps):
    keys = jax.random.split(key, len(images))
    classifier, inputs = attacks.as_attacked(attack, classifier, images)
    state = jax.vmap(attack.init, in_axes=(None, 0, 0, 0, None))(
        classifier, inputs, attacks.Goal(labels), keys, jnp.asarray(eps, jnp.float32)
    )
    step = jax.vmap(attack.step, in_axes=(None, 0))
    state = jax.lax.fori_loop(0, attack.steps, lambda _, s: step(classifier, s), state)
    return state.x.reshape(images.shape)
