"""From names of residual blocks to a network that leaves them out."""

import dataclasses
from collections.abc import Sequence

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
    traced = structure.structure_of(classifier.apply_fn, classifier.variables, image_shape)
    gone = {path for block in residual.chosen(traced, names) for path in block.variables}
    network = shrunk.whole(classifier.apply_fn, classifier.variables)
    network = dataclasses.replace(network, blocks=(*network.blocks, *dict.fromkeys(names)))
    network.left(jax.ShapeDtypeStruct((2, *image_shape), jnp.float32))  # where a name is no other's
    return Classifier(trees.drop(classifier.variables, gone), network)
