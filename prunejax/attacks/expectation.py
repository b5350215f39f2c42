"""Expectation over transformation: a randomised network as a deterministic classifier."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from prunejax import checks
from prunejax.classifier import Classifier

Randomised = Callable[[Any, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Expectation:
    """Mean logits of a randomised network over fresh draws for each image.

    They decide, and rank what attacks climb, as the mean log-probabilities do, from which they
    differ by one number for all classes.

    The draws are a function of the image's bits: another iterate of an attack meets other draws, as
    when the network drew anew at each pass, and yet the same image gives the same answer, so that
    attacks, their confirmation and their resumption stay reproducible. Gradients of logits are the
    mean over the draws: expectation over transformation, Athalye et al. (2018), "Synthesizing
    robust adversarial examples". An attack climbs the loss of the mean logits, not the mean of the
    draws' losses: the same for the margin with a given target, but the cross-entropy saturates
    where the mean is certain, though some draws are not.

    What `attacks.run` confirms is the mean over the draws of the returned image: the pass is a
    fresh one, the draws are those that the attack has met there. An attack that looks at hundreds
    of images can meet lucky draws, so near the boundary it finds a little more than is adversarial
    in the mean: within some standard deviations of a margin over `samples` draws. Draws that no
    attack has met, and more of them, tell:

        judge = expectation(apply_fn, variables, samples=1000, seed=1)
        held = judge(result.images).argmax(axis=1) != labels

    A randomised network that is attacked without its expectation draws anew in each pass. Then a
    success is what one further pass confirms, by chance: those that it does not are refused and
    counted (`Diagnostics.unconfirmed`), the example stays robust, `Diagnostics.unrepeatable` is
    not 0, and the warnings ask for the expectation.

    Attributes:
      apply_fn: `(variables, images [B, ...], key) -> logits [B, C]`.
      samples: draws for an image; AutoAttack's "rand" takes 20.
      seed: of the draws.
    """

    apply_fn: Randomised
    samples: int = 20
    seed: int = 0

    def __post_init__(self):
        checks.integer("samples", self.samples, least=1)
        checks.integer("seed", self.seed, least=0)

    def __call__(self, variables: Any, images: jax.Array) -> jax.Array:
        def one(image):
            # Of other kinds of keys a batch would draw from its first one alone.
            key = jax.random.key(self.seed, impl="threefry2x32")
            keys = jax.random.split(jax.random.fold_in(key, _fingerprint(image)), self.samples)
            draws = jax.vmap(lambda key: self.apply_fn(variables, image[None], key)[0])(keys)
            return jnp.mean(draws, axis=0)

        return jax.vmap(one)(images)


def expectation(
    apply_fn: Randomised, variables: Any, *, samples: int = 20, seed: int = 0
) -> Classifier:
    """A classifier for `attacks.run` from a network that needs a key at each pass.

    Args:
      apply_fn: `(variables, images [B, ...], key) -> logits [B, C]`.
      variables: its variables.
      samples: draws to average over.
      seed: of the draws.

    Raises:
      ValueError: `samples` is no integer of at least 1, or `seed` none of at least 0.
    """
    return Classifier(variables, Expectation(apply_fn, samples, seed))


def _fingerprint(image: jax.Array) -> jax.Array:
    """An integer that another image most likely does not have."""
    bits = jax.lax.bitcast_convert_type(
        jax.lax.stop_gradient(image.ravel()).astype(jnp.float32), jnp.uint32
    )
    # Odd multipliers that differ by position: neither a swap nor a small change goes unnoticed.
    weights = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + jnp.uint32(2_654_435_761)
    return jnp.sum(bits * weights, dtype=jnp.uint32)
