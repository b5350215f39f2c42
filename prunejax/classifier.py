"""A trained network as one pytree: its variables and a static function that applies them.

    network = Network(models.create("lenet5", num_classes=10), mean=(0.28,), std=(0.35,))
    classifier = Classifier(network.init(jax.random.key(0), (28, 28, 1)), network)
    logits = classifier(images)  # images in [0, 1], [B, 28, 28, 1] -> [B, 10]

Normalisation and evaluation mode live inside, so that no attack can get them wrong.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Variables = Any


@dataclasses.dataclass(frozen=True)
class Network:
    """A Flax linen module with its input normalisation: the static half of a `Classifier`.

    Two equal networks share their compiled programs, for it is hashed by value.

    Attributes:
      module: maps normalised images `[B, ...]` to logits `[B, C]`; called with `train=` where it
        takes such an argument.
      mean: subtracted from the images, a scalar or one value a channel, in units of [0, 1].
      std: the images are divided by it after that, likewise.
    """

    module: nn.Module
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0

    def init(self, key: jax.Array, image_shape: tuple[int, ...]) -> Variables:
        """Fresh variables for images of shape `image_shape` (no batch axis)."""
        return jax.jit(self.module.init)(key, jnp.zeros((1, *image_shape)))

    def __call__(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Logits `[B, C]` in evaluation mode, from images `[B, ...]` in [0, 1]."""
        return self.module.apply(variables, self._normalise(images), **self._mode(train=False))

    def train(
        self, variables: Variables, images: jax.Array, key: jax.Array | None = None
    ) -> tuple[jax.Array, Variables]:
        """Logits in training mode, and the collections (batch statistics) that it moved.

        Args:
          variables: of the network.
          images: `[B, ...]` in [0, 1].
          key: of this forward pass, for a module that draws at random, as dropout does; others
            have no use for it.
        """
        collections = [name for name in variables if name != "params"]
        return self.module.apply(
            variables,
            self._normalise(images),
            # A stream that has no key of its own, whatever its name, draws from this one.
            rngs=None if key is None else {"params": key},
            mutable=collections,
            **self._mode(train=True),
        )

    def _normalise(self, images: jax.Array) -> jax.Array:
        return (images - jnp.asarray(self.mean)) / jnp.asarray(self.std)

    def _mode(self, *, train: bool) -> dict[str, bool]:
        # By signature: Flax wraps `__call__`, whose own code object knows no argument names.
        takes_train = "train" in inspect.signature(type(self.module).__call__).parameters
        return {"train": train} if takes_train else {}


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["variables"], meta_fields=["apply_fn"]
)
@dataclasses.dataclass(frozen=True)
class Classifier:
    """Maps images in [0, 1] to logits: `classifier(images)`, `[B, ...]` -> `[B, C]`.

    Logits are float32 at least, also those of a network that computes in half precision. A pytree:
    jit it, shard it, `vmap` over a stack of them.

    Attributes:
      variables: pytree of arrays, for Flax `{"params": ..., "batch_stats": ...}`.
      apply_fn: `(variables, images) -> logits`, hashable, in evaluation mode (a `Network` is one).
    """

    variables: Variables
    apply_fn: Callable[[Variables, jax.Array], jax.Array]

    def __call__(self, images: jax.Array) -> jax.Array:
        return jax.tree.map(_at_least_float32, self.apply_fn(self.variables, images))

    @property
    def params(self) -> Any:
        """The trainable part of the variables."""
        return self.variables["params"]

    def with_params(self, params: Any) -> "Classifier":
        """The same classifier with other parameters."""
        return dataclasses.replace(self, variables={**self.variables, "params": params})

    def on_vectors(self, shape: tuple[int, ...]) -> "Classifier":
        """The same classifier of flattened images `[B, d]`; `shape` is that of one image."""
        return dataclasses.replace(self, apply_fn=_OnVectors(self.apply_fn, shape))


def _at_least_float32(logits: jax.Array) -> jax.Array:
    dtype = jnp.result_type(logits)
    half = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return logits.astype(jnp.float32) if half else logits


@dataclasses.dataclass(frozen=True)
class _OnVectors:
    apply_fn: Callable[[Variables, jax.Array], jax.Array]
    shape: tuple[int, ...]

    def __call__(self, variables: Variables, vectors: jax.Array) -> jax.Array:
        return self.apply_fn(variables, vectors.reshape(len(vectors), *self.shape))
