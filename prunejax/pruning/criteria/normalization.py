"""The scale of the normalisation that follows a layer."""

import jax
import jax.numpy as jnp

from prunejax import jaxprs, trees
from prunejax.pruning.activations import search
from prunejax.pruning.evidence import Criterion, Evidence, Params


def norm_scale(params: Params, evidence: Evidence) -> Params:
    """|gamma| of the normalisation that follows, one value for each output, `[1, ..., 1, out]`.

    Liu et al. (2017), network slimming. Which normalisation follows is said by `evidence.norms`.
    Of the others it is found in the equations of `evidence.network`, where that is there with
    `input_shape` or batches of (images, labels): the first parameter that multiplies the layer's
    outputs, a number each, before another layer reads them; for a branch that is added up before
    it is normalised, as in pre-activation networks, that of the first normalisation of the sum.

    Raises:
      ValueError: a weight that is to be scored has no such scale, or one of another length.
    """
    leaves = trees.flatten(params)
    given = dict(evidence.norms or {})
    unknown = [p for pair in given.items() for p in pair if p not in leaves]
    if unknown:
        raise ValueError(f"norms names {unknown[0]!r}, which is none of {list(leaves)}.")
    scales = {**_followers(params, evidence), **given}
    # Alone, without a pruner that says what is needed, score what can be scored.
    needed = evidence.paths or tuple(p for p in evidence.weights(params) if p in scales)
    for path in needed:
        if path not in scales:
            raise ValueError(
                f"criterion 'norm_scale' knows no normalisation that follows {path!r}; exclude it, "
                "or pass evidence=Evidence(network=..., input_shape=...), in which it is found, or "
                f"Evidence(norms={{{path!r}: path of its scale}})."
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


def _followers(params: Params, evidence: Evidence) -> dict[str, str]:
    """By path of a weight that of the scale that follows, as far as it is known."""
    shape = _input_shape(evidence)
    all_given = set(evidence.weights(params)) <= set(evidence.norms or ())
    if evidence.network is None or shape is None or all_given:
        return {}
    variables = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)),
        evidence.variables_of(params),
    )
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    program = jaxprs.flat(evidence.apply_fn, variables, images)
    return search.scales(program, list(trees.flatten(variables)))


def _input_shape(evidence: Evidence) -> tuple[int, ...] | None:
    if evidence.input_shape is not None:
        return tuple(evidence.input_shape)
    pairs = [batch for batch in evidence.batches if isinstance(batch, tuple | list)]
    return jnp.shape(pairs[0][0])[1:] if pairs else None


NORM_SCALE = Criterion("norm_scale", norm_scale)
