"""What to remove, when, and how it stays removed: pure transforms of pytrees of parameters.

mask = pruning.prune(params, 0.9, pruning.Pruner(allocation="global"))
"""

from prunejax.pruning import sensitivity
from prunejax.pruning.allocation import ALLOCATIONS, Layer, erk_densities, igq_densities
from prunejax.pruning.criteria import CRITERIA, learned
from prunejax.pruning.evidence import Criterion, Evidence
from prunejax.pruning.granularity import AGGREGATES, GRANULARITIES
from prunejax.pruning.optimizer import MaskedState, mask_of, masked, optimizer
from prunejax.pruning.pruner import Pruner, prune, scores
from prunejax.pruning.regrowth import GROWTH, regrowing
from prunejax.pruning.schedules import (
    SCHEDULES,
    alternating,
    constant_rate,
    cubic,
    iterative,
    one_shot,
    schedule,
)

__all__ = [
    "AGGREGATES",
    "ALLOCATIONS",
    "CRITERIA",
    "GRANULARITIES",
    "GROWTH",
    "SCHEDULES",
    "Criterion",
    "Evidence",
    "Layer",
    "MaskedState",
    "Pruner",
    "alternating",
    "constant_rate",
    "cubic",
    "erk_densities",
    "igq_densities",
    "iterative",
    "learned",
    "mask_of",
    "masked",
    "one_shot",
    "optimizer",
    "prune",
    "regrowing",
    "schedule",
    "scores",
    "sensitivity",
]
