"""What makes a weight worth keeping, by name; see `prunejax.pruning.evidence` for the signature."""

from prunejax.pruning.criteria.curvature import FISHER, GRASP
from prunejax.pruning.criteria.gradients import GRADIENT, SNIP, TAYLOR
from prunejax.pruning.criteria.lamp import LAMP
from prunejax.pruning.criteria.learned import LEARNED
from prunejax.pruning.criteria.maps import CKA, EXPECTED_ABS, HRANK, KL, PLS_VIP
from prunejax.pruning.criteria.median import GEOMETRIC_MEDIAN
from prunejax.pruning.criteria.normalization import NORM_SCALE
from prunejax.pruning.criteria.synflow import SYNFLOW
from prunejax.pruning.criteria.weights import MAGNITUDE, RANDOM, SQUARED
from prunejax.pruning.evidence import Criterion

CRITERIA: dict[str, Criterion] = {
    criterion.name: criterion
    for criterion in (
        MAGNITUDE,
        RANDOM,
        SQUARED,
        NORM_SCALE,
        LAMP,
        GEOMETRIC_MEDIAN,
        GRADIENT,
        SNIP,
        TAYLOR,
        GRASP,
        FISHER,
        SYNFLOW,
        LEARNED,
        EXPECTED_ABS,
        HRANK,
        KL,
        CKA,
        PLS_VIP,
    )
}

__all__ = ["CRITERIA"]
