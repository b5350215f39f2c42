"""What criteria may look at while a network is trained: its objective and some of its examples."""

from collections.abc import Callable

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

    Args:
      network: the architecture.
      variables: of the network; its collections, such as batch statistics, are taken as they are.
      objective: what is minimised.
      images: `[N, ...]` uint8. With N = 0 there is neither objective nor batch in the evidence.
      labels: `[N]`.
      key: for what criteria and the objective draw at random.
    """
    collections = {name: value for name, value in variables.items() if name != "params"}
    draw, attack = jax.random.split(key)

    def loss(params, batch):
        return objective(network, {"params": params, **collections}, *batch, attack)[0]

    return Evidence(
        key=draw,
        loss=loss if len(images) else None,
        batches=((images.astype(jnp.float32) / 255, labels),) if len(images) else (),
        network=network,
        variables=collections,
        input_shape=images.shape[1:],
    )


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
