"""SynFlow: which weights carry the flow from the inputs to the outputs, without any data."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from prunejax.classifier import Network
from prunejax.pruning.criteria import gradients
from prunejax.pruning.evidence import Criterion, Evidence, Params


def synflow(params: Params, evidence: Evidence) -> Params:
    """|w| dR/d|w|, with R the sum of the outputs of the network of all |w| for an input of ones.

    Tanaka et al. (2020). In networks without biases whose activations are ReLUs
    the scores of every layer sum to R, and those into a hidden unit to those out of it. Meant for
    many rounds: take a schedule of constant rate (their n = 100) with the allocation "global". Of a
    unit, the sum over its weights. A `Network`'s normalisation is left out, also inside a network
    that was made smaller; its batch statistics are those of `evidence.variables`. R grows with
    depth: beyond 1e38 it needs 64-bit floats.
    """
    network = _of_normalised(evidence.apply_fn)
    positive = jax.tree.map(jnp.abs, params)
    flow = _flow(network, tuple(evidence.input_shape), positive, evidence.variables or {})
    return gradients.multiplied(positive, flow)


def _of_normalised(network):
    """The network for images that are normalised already; what wraps it has it as `network`."""
    if isinstance(network, Network):
        return dataclasses.replace(network, mean=0.0, std=1.0)
    if dataclasses.is_dataclass(network) and hasattr(network, "network"):
        return dataclasses.replace(network, network=_of_normalised(network.network))
    return network


@functools.partial(jax.jit, static_argnums=(0, 1))
def _flow(network, input_shape, positive, variables):
    def outputs(params):
        variables_of = {**variables, "params": params}
        return network(variables_of, jnp.ones((1, *input_shape))).sum()

    return jax.grad(outputs)(positive)


SYNFLOW = Criterion("synflow", synflow, needs=("network", "input_shape"), aggregate="sum")
