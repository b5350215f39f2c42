"""From names of residual blocks to a network that leaves them out, or a mask that silences them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from prunejax import trees
from prunejax.classifier import Classifier
from prunejax.shrinking import residual, shrunk, structure


def remove_blocks(
    classifier: Classifier, names: Sequence[str], image_shape: tuple[int, ...]
) -> Classifier:
    """The network without some of its residual blocks: x + f(x) becomes x.

    Computes what the network does when all parameters of those blocks are zero, which is nothing
    where f ends in a linear layer or a normalisation.

    Args:
      classifier: the network.
      names: of blocks with an identity shortcut, as `residual.blocks` lists them.
      image_shape: of one image.

    Raises:
      ValueError: a name that no such block has.
    """
    gone = _variables_of(classifier, names, image_shape)
    network = shrunk.whole(classifier.apply_fn, classifier.variables)
    network = dataclasses.replace(network, blocks=(*network.blocks, *dict.fromkeys(names)))
    network.left(jax.ShapeDtypeStruct((2, *image_shape), jnp.float32))  # where a name is no other's
    return Classifier(trees.drop(classifier.variables, gone), network)


def block_mask(classifier: Classifier, names: Sequence[str], image_shape: tuple[int, ...]) -> Any:
    """A mask of the parameters without those of some residual blocks, as `pruning.masked` takes it.

    Under it the network computes what `remove_blocks` makes of it, where each f ends in a linear
    layer or a normalisation, and takes as long as before. Biases, scales and shifts of the blocks
    are in it too, so that f is zero and stays so while the others are trained.

    names = shrinking.lowest_blocks(classifier, (32, 32, 3), number=2)
    mask = shrinking.block_mask(classifier, names, (32, 32, 3))

    Args:
      classifier, names, image_shape: as in `remove_blocks`.

    Raises:
      ValueError: variables without "params", or a name that no block has.
    """
    structure.require_params(classifier.variables)
    gone = _variables_of(classifier, names, image_shape)
    return trees.map_with_path(
        lambda path, _: jnp.array(f"params/{path}" not in gone), classifier.params
    )


def _variables_of(classifier, names, image_shape) -> set[str]:
    """Paths of what the network does not need without these blocks."""
    traced = structure.structure_of(classifier.apply_fn, classifier.variables, image_shape)
    return {path for block in residual.chosen(traced, names) for path in block.variables}
