"""Lottery tickets: the mask of a trained network on its earlier weights."""

from typing import Any

from prunejax import masks

Params = Any
Mask = Any


def rewind(mask: Mask, earlier_params: Params) -> Params:
    """M * w_k: the weights as they were at step k, zero where the mask removes them.

    With k = 0 the original lottery ticket (Frankle & Carbin 2019), else rewinding (Frankle et al.
    2020). Start the optimiser afresh and train on with `pruning.masked(inner, mask)`.

    Args:
      mask: found by pruning the trained network.
      earlier_params: of the same network, from an earlier checkpoint.

    Raises:
      ValueError: the mask does not fit the parameters.
    """
    masks.validate(earlier_params, mask)
    return masks.apply(earlier_params, mask)
