"""The layers of any network and the maps of their units."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from prunejax import jaxprs, trees
from prunejax.pruning.activations import search
from prunejax.pruning.activations.search import Layer

Params = Any
Variables = Any
ApplyFn = Callable[[Variables, jax.Array], jax.Array]


class Traced(NamedTuple):
    """A network and its layers.

    Attributes:
      program: its equations.
      layers: by the path of the kernel among the parameters, in the order in which they run.
      last: those of them that no other layer reads: their units are the classes.
    """

    program: jaxprs.Flat
    layers: dict[str, Layer]
    last: frozenset[str]

    @property
    def scored(self) -> dict[str, Layer]:
        """The layers whose units could be removed."""
        return {path: layer for path, layer in self.layers.items() if path not in self.last}

    def maps(
        self, paths: Iterable[str], variables: Variables, images: jax.Array, *, own: bool = False
    ) -> dict[str, jax.Array]:
        """By path the maps `[N, ..., units]` of these layers, or, if own, their bare outputs."""
        chosen = {path: self.layers[path] for path in paths}
        maps = {}
        wanted = [layer.output if own else layer.map for layer in chosen.values()]
        found = self.values(wanted, variables, images)
        for (path, layer), x in zip(chosen.items(), found, strict=True):
            maps[path] = jnp.moveaxis(x, layer.map_axes, (0, -1))
            if len(maps[path]) != len(images):
                raise ValueError(
                    f"The layer of {path!r} runs on {len(maps[path])} rows for {len(images)} "
                    "images; its map must have an axis of images."
                )
        return maps

    def values(
        self, wanted: Sequence[core.Var], variables: Variables, images: jax.Array
    ) -> list[jax.Array]:
        """What these variables of the program hold."""
        program, leaves = self.program, jax.tree.leaves((variables, images))
        inputs = dict(zip(program.inputs, leaves, strict=True))
        return jaxprs.evaluate_all(program.eqns, {**program.constants, **inputs}, wanted)


def feature_maps(
    apply_fn: ApplyFn, variables: Variables, images: jax.Array
) -> dict[str, jax.Array]:
    """The map of every unit of every convolution and dense layer.

    It is what leaves the next ReLU (or ReLU6) behind the layer, after bias, normalisation and where
    branches are added. Where a pooling, a convolution or a product of matrices comes before any
    ReLU, it is what that reads. A layer counts where its kernel is a parameter, perhaps cast or
    scaled, and has one axis of outputs; those inside of `scan` and the like are not seen.

    Args:
      apply_fn: the network in evaluation mode.
      variables: `{"params": ..., ...}`.
      images: `[N, ...]`.

    Returns:
      By the kernel's path `[N, H, W, C]` for convolutions, `[N, ..., C]` for dense layers.

    Raises:
      ValueError: no such layer, or a kernel that is applied twice.
    """
    traced = trace(apply_fn, variables, images)
    return traced.maps(traced.layers, variables, images)


def trace(apply_fn: ApplyFn, variables: Variables, images: Any) -> Traced:
    """The layers of a network; the arrays may be given by their shapes alone.

    Raises:
      ValueError: as in `feature_maps`.
    """
    program = jaxprs.flat(apply_fn, variables, images)
    return Traced(program, *search.find(program, list(trees.flatten(variables))))


def scores(params: Params, layers: dict[str, Layer], units: dict[str, Any]) -> Params:
    """The tree of scores, given by path those `[units]` of the layers."""

    def leaf(path, _):
        if path not in units:
            return jnp.zeros(())
        layer = layers[path]
        shape = [layer.units if axis == layer.axis else 1 for axis in range(len(layer.shape))]
        return jnp.asarray(units[path], jnp.float32).reshape(shape)

    return trees.map_with_path(leaf, params)
