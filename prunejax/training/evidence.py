"""What criteria may look at while a network is trained: its objective and some of its examples."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from prunejax.classifier import Network, Variables
from prunejax.pruning import Evidence
from prunejax.training.objectives import Objective


def evidence(
    network: Network,
    variables: Variables,
    objective: Objective,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
) -> Evidence:
    """The evidence for every criterion; that of the gradient is adversarial where training is.

    Its loss is that of training: a batch is normalised by its own statistics, and adversarial
    examples are made in evaluation mode. Criteria that look at single examples (fisher), sum over
    filters (taylor) or run the network take the stored statistics.

    Args:
      network: the architecture.
      variables: of the network; its collections, such as batch statistics, stay as they are.
      objective: what is minimised.
      images: `[N, ...]` uint8. With N = 0 there is neither objective nor batch in the evidence.
      labels: `[N]`.
      key: for what criteria and the objective draw at random.
    """
    collections = {name: value for name, value in variables.items() if name != "params"}
    draw, attack = jax.random.split(key)

    def loss_of(network):
        def loss(params, batch):
            return objective(network, {"params": params, **collections}, *batch, attack)[0]

        return loss

    loss = _Loss(of_batch=loss_of(network), in_evaluation=loss_of(_Stored(network)))
    return Evidence(
        key=draw,
        loss=loss if len(images) else None,
        batches=((images.astype(jnp.float32) / 255, labels),) if len(images) else (),
        network=network,
        variables=collections,
        input_shape=images.shape[1:],
    )


@dataclasses.dataclass(frozen=True, eq=False)  # hashed as functions are
class _Loss:
    """`(params, batch) -> scalar`, the objective of a batch.

    Attributes:
      of_batch: that function.
      in_evaluation: the same by stored statistics of normalisation, without dropout.
    """

    of_batch: Callable[[Any, Any], jax.Array]
    in_evaluation: Callable[[Any, Any], jax.Array]

    def __call__(self, params: Any, batch: Any) -> jax.Array:
        return self.of_batch(params, batch)


@dataclasses.dataclass(frozen=True)
class _Stored:
    """A network that is trained as it is evaluated: by stored statistics, without dropout."""

    network: Network

    def __call__(self, variables: Variables, images: jax.Array) -> jax.Array:
        return self.network(variables, images)

    def train(
        self, variables: Variables, images: jax.Array, key: jax.Array | None = None
    ) -> tuple[jax.Array, Variables]:
        """Logits in evaluation mode, and the collections as they were."""
        del key
        collections = {name: value for name, value in variables.items() if name != "params"}
        return self.network(variables, images), collections


def expected(examples: int) -> Evidence:
    """Has the fields that `evidence` of so many examples will have, and nothing in them.

    For `Pruner.check`, where there is no network yet.
    """
    of_examples = {"loss": (), "batches": ((),)} if examples else {}
    return Evidence(key=(), network=(), variables=(), input_shape=(), **of_examples)


def with_evidence(
    make: Callable[[Evidence], optax.GradientTransformation], examples: int
) -> optax.GradientTransformationExtraArgs:
    """An optimiser for which each step brings its own evidence.

        def make(known):
            return pruning.optimizer(optax.adam(1e-3), pruner, schedule, evidence=known)

        tx = with_evidence(make, examples=256)
        updates, state = tx.update(grads, state, params, evidence=evidence(...))

    Args:
      make: `evidence -> optax optimiser`, the state of which does not depend on it.
      examples: how many the evidence will have.
    """

    def init(params):
        return make(expected(examples)).init(params)

    def update(grads, state, params=None, *, evidence, **more):
        tx = optax.with_extra_args_support(make(evidence))
        return tx.update(grads, state, params, **more)

    return optax.GradientTransformationExtraArgs(init, update)
