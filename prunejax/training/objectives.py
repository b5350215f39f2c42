"""What training minimises.

An objective is `(network, variables, images, labels, key) -> (loss, (collections, metrics))`:
collections are the batch statistics that the forward pass moved, metrics a dict of scalars.
Adversarial examples are made in evaluation mode, the loss is taken in training mode.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from prunejax.classifier import Classifier, Network, Variables
from prunejax.training.adversaries import Adversary

Outcome = tuple[jax.Array, tuple[Variables, dict[str, jax.Array]]]
# Whatever else is drawn from an objective's key has a smaller number.
_FORWARD = 2**32 - 1

Objective = Callable[[Network, Variables, jax.Array, jax.Array, jax.Array], Outcome]


def natural(label_smoothing: float = 0.0) -> Objective:
    """Cross-entropy of the clean images."""

    def objective(network, variables, images, labels, key):
        return _cross_entropy(network, variables, images, labels, label_smoothing, key)

    return objective


def adversarial(adversary: Adversary, label_smoothing: float = 0.0) -> Objective:
    """Cross-entropy of the adversarial images (Madry et al. 2018, equation 2.1)."""

    def objective(network, variables, images, labels, key):
        perturbed = _perturb(adversary, network, variables, images, labels, key)
        return _cross_entropy(network, variables, perturbed, labels, label_smoothing, key)

    return objective


def half_half(adversary: Adversary, label_smoothing: float = 0.0) -> Objective:
    """1/2 CE(f(x), y) + 1/2 CE(f(x'), y), both halves in one forward pass (Xie et al. 2020)."""

    def objective(network, variables, images, labels, key):
        perturbed = _perturb(adversary, network, variables, images, labels, key)
        both, twice = jnp.concatenate([images, perturbed]), jnp.concatenate([labels, labels])
        return _cross_entropy(network, variables, both, twice, label_smoothing, key)

    return objective


def _perturb(adversary, network, variables, images, labels, key):
    # Stopped on the way in: then nothing inside the attack is differentiated twice.
    classifier = Classifier(jax.lax.stop_gradient(variables), network)
    return jax.lax.stop_gradient(adversary(classifier, images, labels, key))


def _cross_entropy(
    network: Network, variables: Any, images, labels, smoothing: float, key
) -> Outcome:
    logits, collections = network.train(variables, images, jax.random.fold_in(key, _FORWARD))
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    loss = optax.softmax_cross_entropy(logits, targets).mean()
    return loss, (collections, {"accuracy": jnp.mean(jnp.argmax(logits, -1) == labels)})
