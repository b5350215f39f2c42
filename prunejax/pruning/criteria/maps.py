"""Criteria that run the network on data, by name: those of `prunejax.pruning.activations`."""

from collections.abc import Callable

import jax.numpy as jnp

from prunejax.pruning import activations
from prunejax.pruning.evidence import Criterion, Evidence, Params


def _of_images(function: Callable[..., Params]) -> Callable[[Params, Evidence], Params]:
    def score(params: Params, evidence: Evidence) -> Params:
        images = jnp.concatenate([images for images, _ in evidence.batches])
        return function(evidence.apply_fn, evidence.variables_of(params), images)

    score.__doc__ = function.__doc__
    return score


def _pls_vip(params: Params, evidence: Evidence) -> Params:
    images, labels = (jnp.concatenate(part) for part in zip(*evidence.batches, strict=True))
    variables = evidence.variables_of(params)
    return activations.pls_vip(evidence.apply_fn, variables, images, labels)


NEEDS = ("network", "batches")  # batches are pairs of images and labels
EXPECTED_ABS = Criterion("expected_abs", _of_images(activations.expected_abs), needs=NEEDS)
HRANK = Criterion("hrank", _of_images(activations.hrank), needs=NEEDS)
PLS_VIP = Criterion("pls_vip", _pls_vip, needs=NEEDS)
KL = Criterion("kl", _of_images(activations.kl), needs=NEEDS)
CKA = Criterion("cka", _of_images(activations.cka), needs=NEEDS)
