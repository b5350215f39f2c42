"""The scale of the normalisation that follows a layer."""

import re

import jax.numpy as jnp

from prunejax import trees
from prunejax.pruning.evidence import Criterion, Evidence, Params


def norm_scale(params: Params, evidence: Evidence) -> Params:
    """|gamma| of the normalisation that follows, one value for each output, `[1, ..., 1, out]`.

    Liu et al. (2017), network slimming. Which normalisation follows is said by `evidence.norms`,
    and for the others by Flax's names: `Conv_i/kernel` -> `BatchNorm_i/scale` of the same module.

    Raises:
      ValueError: a weight that is to be scored has no such scale, or one of another length.
    """
    leaves = trees.flatten(params)
    given = dict(evidence.norms or {})
    unknown = [p for pair in given.items() for p in pair if p not in leaves]
    if unknown:
        raise ValueError(f"norms names {unknown[0]!r}, which is none of {list(leaves)}.")
    scales = {path: given.get(path, _by_name(path)) for path in leaves}
    # Alone, without a pruner that says what is needed, score what can be scored.
    needed = evidence.paths or tuple(p for p in evidence.weights(params) if scales[p] in leaves)
    for path in needed:
        if scales[path] not in leaves:
            raise ValueError(
                f"criterion 'norm_scale' knows no normalisation that follows {path!r}; exclude it "
                f"or pass evidence=Evidence(norms={{{path!r}: path of its scale}})."
            )
        found, outputs = jnp.shape(leaves[scales[path]]), jnp.shape(leaves[path])[-1]
        if found != (outputs,):
            raise ValueError(
                f"{scales[path]!r} has shape {found}, but {path!r} has {outputs} outputs."
            )

    def score(path, w):
        if path not in needed:
            return jnp.zeros(())
        return jnp.abs(leaves[scales[path]]).reshape(*[1] * (jnp.ndim(w) - 1), -1)

    return trees.map_with_path(score, params)


def _by_name(path: str) -> str | None:
    scale, found = re.subn(r"(^|/)Conv_(\d+)/kernel$", r"\1BatchNorm_\2/scale", path)
    return scale if found else None


NORM_SCALE = Criterion("norm_scale", norm_scale)
