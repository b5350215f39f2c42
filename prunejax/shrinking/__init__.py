"""Really removing what pruning chose: networks with fewer channels and fewer blocks.

traced = shrinking.structure_of(classifier.apply_fn, classifier.variables, (32, 32, 3))
mask = shrinking.channel_mask(traced, classifier.variables, sparsity=0.5)
small = shrinking.shrink(classifier, mask, (32, 32, 3))

Channels are chosen by a mask, residual blocks by name, for they are no units of a weight:
`lowest_blocks` names some, which `block_mask` silences and `remove_blocks` leaves out.

Which layers keep all their channels, and why, is told by `shrinking.kept_whole(traced)`: the last
one, whose channels are the network's outputs, those in front of a normalisation over channels, and
all behind or in front of something that has no rule (`rules`).
"""

from prunejax.shrinking import channel_sensitivity
from prunejax.shrinking.block_pruning import block_scores, lowest_blocks
from prunejax.shrinking.channel_pruning import channel_mask, channel_scores
from prunejax.shrinking.gone import kept_channels
from prunejax.shrinking.grouping import Group, groups, kept_whole
from prunejax.shrinking.iterate import Round, iterate
from prunejax.shrinking.residual import Block, blocks
from prunejax.shrinking.shrunk import Shrunk, describe, from_description, whole
from prunejax.shrinking.smaller import carried, shrink
from prunejax.shrinking.structure import Structure, structure_of
from prunejax.shrinking.without_blocks import block_mask, remove_blocks

__all__ = [
    "Block",
    "Group",
    "Round",
    "Shrunk",
    "Structure",
    "block_mask",
    "block_scores",
    "blocks",
    "carried",
    "channel_mask",
    "channel_scores",
    "channel_sensitivity",
    "describe",
    "from_description",
    "groups",
    "iterate",
    "kept_channels",
    "kept_whole",
    "lowest_blocks",
    "remove_blocks",
    "shrink",
    "structure_of",
    "whole",
]
