"""Criteria of filters that look at data: at the maps they make, or at the network without them.

scores = activations.expected_abs(classifier.apply_fn, classifier.variables, images)

For any network `apply_fn(variables, images) -> logits` whose parameters are `variables["params"]`:
its layers are found in its equations. Each criterion gives a tree of the parameters' structure.
The leaf of a scored kernel holds a score a unit, of shape `(1, 1, 1, out)` or `(1, out)`, higher is
kept; all others are zeros of shape `()`. Scored are the convolutions and dense layers that another
one reads, not the last: its units are the classes. A pruner raises an error where it is to remove
some of the others.
"""

from prunejax.pruning.activations.ablation import cka, kl, zero_units
from prunejax.pruning.activations.layers import feature_maps
from prunejax.pruning.activations.maps import expected_abs, hrank, pls_vip

__all__ = ["cka", "expected_abs", "feature_maps", "hrank", "kl", "pls_vip", "zero_units"]
