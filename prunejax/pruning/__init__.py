"""What to remove, when, and how it stays removed: pure transforms of pytrees of parameters.

mask = pruning.prune(params, 0.9, pruning.Pruner(allocation="global"))
"""

from prunejax.pruning.allocation import ALLOCATIONS
from prunejax.pruning.criteria import CRITERIA
from prunejax.pruning.granularity import GRANULARITIES
from prunejax.pruning.optimizer import MaskedState, mask_of, masked, optimizer
from prunejax.pruning.pruner import Pruner, prune
from prunejax.pruning.schedules import cubic, one_shot

__all__ = [
    "ALLOCATIONS",
    "CRITERIA",
    "GRANULARITIES",
    "MaskedState",
    "Pruner",
    "cubic",
    "mask_of",
    "masked",
    "one_shot",
    "optimizer",
    "prune",
]
