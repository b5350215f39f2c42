"""SynFlow: which weights carry the flow from the inputs to the outputs, without any data."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import export

from prunejax.classifier import Network
from prunejax.pruning.evidence import Criterion, Evidence, Params


def synflow(params: Params, evidence: Evidence) -> Params:
    """|w| / R dR/d|w|, with R the sum of the outputs of the network of all |w| for ones as input.

    Tanaka et al. (2020); as a share of R, which ranks alike. In networks without biases whose
    activations are ReLUs the scores of every layer sum to 1, and those into a hidden unit to those
    out of it. Meant for many rounds: take a schedule of constant rate (their n = 100) with the
    allocation "global". Of a unit, the sum over its weights. A `Network`'s normalisation is left
    out, also inside a network that was made smaller; its batch statistics are those of
    `evidence.variables`. R grows with depth, 1e64 in a fresh ResNet-50, so it is computed in
    float64, as the authors do.
    """
    network = _of_normalised(evidence.apply_fn)
    return _shares(network, tuple(evidence.input_shape), params, evidence.variables or {})


def _of_normalised(network):
    """The network for images that are normalised already; what wraps it has it as `network`."""
    if isinstance(network, Network):
        return dataclasses.replace(network, mean=0.0, std=1.0)
    if dataclasses.is_dataclass(network) and hasattr(network, "network"):
        return dataclasses.replace(network, network=_of_normalised(network.network))
    return network


@functools.partial(jax.jit, static_argnums=(0, 1))
def _shares(network, input_shape, params, variables):
    def shares(params, variables):
        positive, variables = _double(jax.tree.map(jnp.abs, params)), _double(variables)

        def outputs(params):
            variables_of = {**variables, "params": params}
            return network(variables_of, jnp.ones((1, *input_shape), jnp.float64)).sum()

        total, flow = jax.value_and_grad(outputs)(positive)
        # What is cut off has no flow; what a network of its own dtype lets overflow, no number.
        share = jnp.where(total < jnp.inf, 1 / jnp.where(total > 0, total, 1), jnp.nan)
        return jax.tree.map(lambda w, f: (w * f * share).astype(jnp.float32), positive, flow)

    # As a finished program: what is traced with 64 bits has to be lowered with them too.
    with jax.enable_x64(True):
        program = export.export(jax.jit(shares))(*jax.eval_shape(lambda *x: x, params, variables))
        return program.call(params, variables)


def _double(tree):
    def leaf(x):
        return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(leaf, tree)


SYNFLOW = Criterion("synflow", synflow, needs=("network", "input_shape"), aggregate="sum")
