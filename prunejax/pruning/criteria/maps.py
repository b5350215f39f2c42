"""Criteria that run the network on data, by name: those of `prunejax.pruning.activations`."""

from collections.abc import Callable

import jax.numpy as jnp

from prunejax.pruning import activations
from prunejax.pruning.activations import maps
from prunejax.pruning.evidence import Criterion, Evidence, Params

NEEDS = ("network", "batches")  # batches are pairs of images and labels


def _criterion(name: str, function: Callable[..., Params], *, labelled: bool = False) -> Criterion:
    """The criterion of a function of network, variables, images and, where labelled, labels."""

    def score(params: Params, evidence: Evidence) -> Params:
        for batch in evidence.batches:
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise ValueError(
                    f"criterion {name!r} needs evidence.batches of pairs, ((images, labels), ...); "
                    f"one of them is a {type(batch).__name__}."
                )
        images, labels = (jnp.concatenate(part) for part in zip(*evidence.batches, strict=True))
        network, variables = evidence.apply_fn, evidence.variables_of(params)
        scored = maps.check(network, variables, images, len(images)).scored
        # A score of 0 would make them the first to go.
        unscored = [path for path in evidence.paths or () if path not in scored]
        if unscored:
            raise ValueError(
                f"criterion {name!r} cannot score {unscored}; exclude them, for it knows the units "
                "of layers that another layer reads, not of the last, whose units are the classes, "
                "nor of those inside of scan and the like."
            )
        return function(network, variables, images, *[labels] * labelled)

    score.__doc__ = function.__doc__
    return Criterion(name, score, needs=NEEDS)


EXPECTED_ABS = _criterion("expected_abs", activations.expected_abs)
HRANK = _criterion("hrank", activations.hrank)
PLS_VIP = _criterion("pls_vip", activations.pls_vip, labelled=True)
KL = _criterion("kl", activations.kl)
CKA = _criterion("cka", activations.cka)
