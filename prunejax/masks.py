"""Pruning masks: pytrees of booleans that broadcast against the parameters they cover.

A mask has the parameters' structure. A leaf that is never pruned is a scalar `True`; a filter mask
of a convolution is `(1, 1, 1, out)`; an unstructured one has the weight's full shape.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import trees

Params = Any
Mask = Any


def dense(params: Params) -> Mask:
    """The mask that keeps everything: a scalar `True` for each leaf."""
    return jax.tree.map(lambda _: jnp.array(True), params)


def of_variables(variables: Any, mask: Mask) -> Mask:
    """The mask of all variables that has `mask` for the "params" and keeps the others."""
    return {**dense(variables), "params": mask}


def apply(params: Params, mask: Mask) -> Params:
    """`params` with zeros where the mask is False.

    The mask of a trained network on its own weights of an earlier step is a lottery ticket (Frankle
    & Carbin 2019): start the optimiser afresh, and train on with `pruning.masked`.

    Args:
      params: pytree of parameters.
      mask: of their structure; boolean leaves that are scalars, or of the parameter's rank with
        axes of size 1 or the parameter's.

    Raises:
      ValueError: a mask of another structure, or a leaf that is not boolean or does not broadcast.
    """
    validate(params, mask)
    return jax.tree.map(lambda p, keep: jnp.where(keep, p, jnp.zeros_like(p)), params, mask)


def intersect(first: Mask, second: Mask) -> Mask:
    """The mask that keeps what both masks keep; leaves broadcast against each other.

    Raises:
      ValueError: masks of different structures, or leaves that do not broadcast.
    """
    trees.require_structure("one mask", first, "the other", second)

    def both(path, one, other):
        try:
            return jnp.logical_and(one, other)
        except (TypeError, ValueError):
            raise ValueError(
                f"masks at {path!r} have the shapes {jnp.shape(one)} and {jnp.shape(other)}, "
                "which do not broadcast against each other."
            ) from None

    return trees.map_with_path(both, first, second)


def kept(params: Params, mask: Mask) -> dict[str, int]:
    """How many numbers of each leaf the mask keeps, by path; exact, as Python integers.

    Raises:
      ValueError: a mask that does not fit the parameters.
    """
    validate(params, mask)
    leaves = trees.flatten(params)
    return {
        path: int(np.sum(units)) * jnp.size(leaves[path]) // max(np.size(units), 1)
        for path, units in trees.flatten(mask).items()
    }


def density(params: Params, mask: Mask, paths: tuple[str, ...] | None = None) -> float:
    """Share of the weights that the mask keeps, in [0, 1]; 1 where there are none.

    Args:
      params: pytree of parameters.
      mask: its mask.
      paths: the leaves to count; all weights (`trees.weights`) where None, so that layers which
        were never candidates count too.

    Raises:
      ValueError: a mask that does not fit the parameters, or a path that is none of theirs.
    """
    counts, leaves = kept(params, mask), trees.flatten(params)
    paths = trees.weights(params) if paths is None else paths
    unknown = [path for path in paths if path not in leaves]
    if unknown:
        raise ValueError(f"paths has {unknown[0]!r}, which is none of {list(leaves)}.")
    numbers = sum(jnp.size(leaves[path]) for path in paths)
    return sum(counts[path] for path in paths) / numbers if numbers else 1.0


def nominal_density(params: Params, mask: Mask) -> float:
    """Share of the weights that the mask might have removed and keeps, in [0, 1]; 1 without any.

    Of the `covered` ones.

    Raises:
      ValueError: a mask that does not fit the parameters.
    """
    return density(params, mask, covered(params, mask))


def covered(params: Params, mask: Mask) -> tuple[str, ...]:
    """Paths of the weights that the mask might have removed: its leaf is more than a single True.

    Raises:
      ValueError: a mask that does not fit the parameters.
    """
    validate(params, mask)
    leaves = trees.flatten(mask)
    return tuple(p for p in trees.weights(params) if jnp.ndim(leaves[p]) or not leaves[p])


def fits(mask_leaf: jax.Array, leaf: jax.Array) -> bool:
    """Whether a mask is a scalar, or of the leaf's rank with axes of size 1 or the leaf's."""
    mask_shape, shape = jnp.shape(mask_leaf), jnp.shape(leaf)
    return not mask_shape or (
        len(mask_shape) == len(shape)
        and all(m in (1, s) for m, s in zip(mask_shape, shape, strict=True))
    )


def validate(params: Params, mask: Mask) -> None:
    """Raises a ValueError naming the first leaf whose mask is missing, not boolean or too big."""
    trees.require_like("mask", mask, params)
    leaves, masks = trees.flatten(params), trees.flatten(mask)
    for path, leaf in leaves.items():
        shape, mask_shape = jnp.shape(leaf), jnp.shape(masks[path])
        if jnp.result_type(masks[path]) != jnp.bool_:
            raise ValueError(
                f"mask at {path!r} has dtype {jnp.result_type(masks[path])}; it must be bool."
            )
        if not fits(masks[path], leaf):
            raise ValueError(
                f"mask at {path!r} has shape {mask_shape}, which does not broadcast to {shape}."
            )
