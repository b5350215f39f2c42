"""A network without some of its channels, as a network."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from prunejax import trees
from prunejax.shrinking import executor, residual, structure

# A tree's structure, and for each of its leaves path, shape and dtype.
Signature = tuple[Any, tuple[tuple[str, tuple[int, ...], Any], ...]]


@dataclasses.dataclass(frozen=True)
class Shrunk:
    """Runs the equations of a network on fewer channels; takes the place of a `Network`.

    The network is traced anew for each shape of its input and dtypes of its variables, with all its
    channels; what is compiled are the smaller arrays alone. (But the derivatives of elementwise
    functions with rules of their own: those know the sizes alone at which they were traced.) Hashed
    by value: equal ones share their compiled programs.

    Attributes:
      network: the network with all its channels, with a method `train` if it is to be trained.
      signature: of its variables.
      removed: the channels that are gone, as positions on axes of variables: (path, axis, packed
        bits).
      blocks: names of the residual blocks that are left out.
    """

    network: Callable[[Any, jax.Array], jax.Array]
    signature: Signature
    removed: tuple[tuple[str, int, bytes], ...] = ()
    blocks: tuple[str, ...] = ()

    def __call__(self, variables: Any, images: jax.Array) -> jax.Array:
        """Logits `[B, C]` in evaluation mode, from images `[B, ...]` in [0, 1]."""
        return self._run(self.network, variables, images)

    def train(
        self, variables: Any, images: jax.Array, key: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        """Logits in training mode, and the collections that it moved; `key` is the network's."""
        train = self.network.train
        if key is not None:
            train = functools.partial(train, key=key)
        return self._run(train, variables, images)

    def _run(self, function, variables, images):
        shapes = _in_dtypes_of(variables, self.shapes)
        traced = structure.trace(function, shapes, shape_of(images))
        left_out = residual.chosen(traced, self.blocks)
        gone = {path for block in left_out for path in block.variables}
        outputs = executor.run(
            traced.program,
            traced.channels,
            self._kept(traced),
            self._inputs(traced, variables) | {traced.images: images},
            {block.output: block.shortcut for block in left_out},
        )
        result = jax.tree.unflatten(traced.program.structure, outputs)
        if not isinstance(result, tuple):
            return result
        logits, collections = result
        return logits, trees.drop(collections, gone) if gone else collections

    @property
    def shapes(self) -> Any:
        """Shapes and dtypes of the whole network's variables, as a tree."""
        tree, leaves = self.signature
        return jax.tree.unflatten(
            tree, [jax.ShapeDtypeStruct(shape, dtype) for _, shape, dtype in leaves]
        )

    def structure_before(self, images: jax.ShapeDtypeStruct) -> structure.Structure | None:
        """That of the network with all its blocks, where some are left out.

        Args:
          images: shape and dtype of a batch.
        """
        return structure.trace(self.network, self.shapes, images) if self.blocks else None

    def left(self, images: jax.ShapeDtypeStruct) -> Any:
        """Shapes and dtypes of the variables that are left, as a tree.

        Args:
          images: shape and dtype of a batch.
        """
        traced = structure.trace(self.network, self.shapes, images)
        gone = {path for b in residual.chosen(traced, self.blocks) for path in b.variables}
        smaller = jax.eval_shape(
            lambda variables: structure.without(traced, self._kept(traced), variables), self.shapes
        )
        return trees.drop(smaller, gone) if gone else smaller

    def _inputs(self, traced, variables):
        values = trees.flatten(variables)
        return {traced.variables[path]: value for path, value in values.items()}

    def _kept(self, traced) -> np.ndarray:
        kept = np.ones(traced.number, bool)
        for path, axis, bits in self.removed:
            channels = traced.along(path)[axis]
            kept[channels[_unpacked(bits, len(channels))]] = False
        return kept


def whole(network: Callable[..., Any], variables: Any) -> Shrunk:
    """A network with all its channels, or what `network` is if it is a smaller one already."""
    if isinstance(network, Shrunk):
        return network
    leaves = tuple(
        (path, tuple(leaf.shape), leaf.dtype)
        for path, leaf in trees.flatten(structure.shapes_of(variables)).items()
    )
    return Shrunk(network, (jax.tree.structure(variables), leaves))


def without_channels(network: Shrunk, traced: structure.Structure, kept: np.ndarray) -> Shrunk:
    """`network` without the channels that are not kept.

    Args:
      network: as it was traced.
      traced: its structure.
      kept: `[channels]` booleans.
    """
    removed = {(path, axis): bits for path, axis, bits in network.removed}
    sizes = {path: shape for path, shape, _ in network.signature[1]}
    for path in traced.variables:
        for axis, channels in enumerate(traced.along(path)):
            if not kept[channels].all():
                gone = np.zeros(sizes[path][axis], bool)
                if (path, axis) in removed:
                    gone = _unpacked(removed[path, axis], len(gone))
                gone[np.flatnonzero(~gone)] = ~kept[channels]
                removed[path, axis] = np.packbits(gone).tobytes()
    as_tuple = tuple((path, axis, bits) for (path, axis), bits in removed.items())
    return dataclasses.replace(network, removed=as_tuple)


def describe(network: Shrunk) -> dict[str, Any]:
    """What was removed, as JSON knows it; with the whole network it gives the smaller one back."""
    removed = [[path, axis, bits.hex()] for path, axis, bits in network.removed]
    return {"removed": removed, "blocks": list(network.blocks)}


def from_description(
    network: Callable[..., Any], variables: Any, description: Mapping[str, Any]
) -> Shrunk:
    """The smaller network.

    Args:
      network: the whole one.
      variables: of the whole one, or their shapes.
      description: as `describe` gave it.
    """
    removed = tuple(
        (path, axis, bytes.fromhex(bits)) for path, axis, bits in description["removed"]
    )
    return dataclasses.replace(
        whole(network, variables), removed=removed, blocks=tuple(description["blocks"])
    )


def _in_dtypes_of(variables: Any, whole: Any) -> Any:
    """Shapes of the whole network's variables, in the dtypes of those that are left.

    Those of a block that is gone are as narrow as any that were like them: nothing is widened.
    """
    left = {path: x.dtype for path, x in trees.flatten(structure.shapes_of(variables)).items()}
    now: dict[Any, Any] = {}  # a dtype of the whole network's -> the narrowest in its place
    for path, x in trees.flatten(whole).items():
        if path in left:
            now[x.dtype] = min(left[path], now.get(x.dtype, left[path]), key=lambda d: d.itemsize)
    return trees.map_with_path(
        lambda path, x: jax.ShapeDtypeStruct(x.shape, left.get(path, now.get(x.dtype, x.dtype))),
        whole,
    )


def shape_of(images: jax.Array) -> jax.ShapeDtypeStruct:
    """Of an array, traced or not."""
    return jax.ShapeDtypeStruct(images.shape, images.dtype)


def _unpacked(bits: bytes, number: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=number).astype(bool)
