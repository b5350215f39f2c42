"""Really removing what pruning chose: networks with fewer channels and fewer blocks.

small = shrinking.shrink(classifier, mask, image_shape=(32, 32, 3))
"""

from prunejax.shrinking.block_pruning import block_scores, lowest_blocks
from prunejax.shrinking.channel_pruning import channel_mask, channel_scores
from prunejax.shrinking.iterate import Round, iterate
from prunejax.shrinking.residual import Block, blocks
from prunejax.shrinking.shrink import carried, groups, kept_channels, remove_blocks, shrink
from prunejax.shrinking.shrunk import Shrunk, describe, from_description, whole
from prunejax.shrinking.structure import Structure, of

__all__ = [
    "Block",
    "Round",
    "Shrunk",
    "Structure",
    "block_scores",
    "blocks",
    "carried",
    "channel_mask",
    "channel_scores",
    "describe",
    "from_description",
    "groups",
    "iterate",
    "kept_channels",
    "lowest_blocks",
    "of",
    "remove_blocks",
    "shrink",
    "whole",
]
