"""Parameters by path: every rate, mask and score is keyed by a name like "Conv_0/kernel"."""

import fnmatch
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Params = Any


def path_name(path: Sequence[Any]) -> str:
    """The name of a key path of jax.tree_util: its parts joined by "/"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def map_with_path(function: Callable[..., Any], tree: Params, *rest: Params) -> Params:
    """`jax.tree.map` whose function also gets the path: `function("Conv_0/kernel", leaf, ...)`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(path_name(path), *leaves), tree, *rest
    )


def flatten(tree: Params) -> dict[str, Any]:
    """The leaves by their path, in the tree's order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(tree: Params, leaves: dict[str, Any]) -> Params:
    """A tree of `tree`'s structure with the leaves that `leaves` holds by path."""
    return map_with_path(lambda path, _: leaves[path], tree)


def prunable(
    params: Params, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> tuple[str, ...]:
    """Paths of the leaves that pruning may touch, in the tree's order.

    Those are the weights: leaves of rank two or more. Biases and normalisation are never pruned.

    Args:
      params: pytree of parameters.
      include: shell patterns; a path must match one of them, e.g. `["*Conv*"]`.
      exclude: shell patterns; a path that matches one of them is left alone.

    Raises:
      ValueError: a pattern matches no weight.
    """
    weights = [path for path, leaf in flatten(params).items() if jnp.ndim(leaf) >= 2]
    for pattern in (*include, *exclude):
        if not fnmatch.filter(weights, pattern):
            raise ValueError(f"Pattern {pattern!r} matches none of the weights {weights}.")

    def matches(path: str, patterns: Sequence[str]) -> bool:
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)

    return tuple(path for path in weights if matches(path, include) and not matches(path, exclude))


def size(tree: Params) -> int:
    """How many numbers the tree holds."""
    return sum(jnp.size(leaf) for leaf in jax.tree.leaves(tree))


def drop(tree: Mapping[str, Any], paths: Collection[str]) -> dict[str, Any]:
    """Nested dicts without the leaves at these paths, and without dicts that are left empty."""
    return nested({path: leaf for path, leaf in flatten(tree).items() if path not in paths})


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts with these leaves, a level for each part of a path."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = leaf
    return tree
