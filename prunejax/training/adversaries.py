"""Adversarial examples for training: `(classifier, images, labels, key) -> images'`, inside jit.

No gradient flows through what an adversary returns.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from prunejax import attacks, checks
from prunejax.classifier import Classifier

Adversary = Callable[[Classifier, jax.Array, jax.Array, jax.Array], jax.Array]


def prescribed(attack: attacks.Attack, eps: float) -> Adversary:
    """The last iterate of `attack` with one budget for all examples (Madry et al. 2018).

    Args:
      attack: a fixed-budget attack, such as PGD, that makes one attempt at an example.
      eps: the budget, in the attack's norm, at least 0 and finite.

    Raises:
      ValueError: a budget out of its range; a minimum-norm attack, which takes none; a cascade; a
        targeted attack, or one of several attempts (`restarts`, or `targets` above 1).
    """
    if not isinstance(attack, attacks.Attack) or attack.minimum_norm:
        raise ValueError(f"attack is {attack}; a prescribed budget needs a fixed-budget attack.")
    if attack.targeted:
        raise ValueError(
            "targeted is True; labels are the true classes in training, use an untargeted attack."
        )
    for name, value in (("restarts", attack.restarts), ("targets", attack.targets)):
        if value > 1:
            raise ValueError(
                f"{name} is {value}; training makes one attempt at an example, 1 is the most."
            )
    checks.number("eps", eps, within="[0, inf)")

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
    if cutoff is not None:
        checks.number("cutoff", cutoff, within="(0, inf)")
    checks.number("scale", scale, within="(0, inf)")
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

    def one(image, clean, label, key):
        goal = attack.goal(clean, label, 0)
        return attack.iterate(attack.walk(classifier, image, goal, key, eps))

    # Where nothing asks for the clean logits, the compiler drops this pass.
    return jax.vmap(one)(inputs, classifier(inputs), labels, keys).reshape(images.shape)
