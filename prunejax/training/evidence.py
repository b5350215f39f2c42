"""What criteria may look at while a network is trained: its objective and some of its examples."""

import jax
import jax.numpy as jnp

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
