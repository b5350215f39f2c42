"""Parameters by path: every rate, mask and score is keyed by a name like "Conv_0/kernel"."""

import fnmatch
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

Params = Any

# Attention and `nn.scan` give these more than one axis, which makes them no weights.
_NEVER_WEIGHTS = ("bias", "scale", "offset")


def path_name(path: Sequence[Any]) -> str:
    """The name of a key path of jax.tree_util: its parts joined by "/".

    Without the attribute "value" at its end, in which a variable of Flax NNX holds its array.
    """
    if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


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


def require_structure(name: str, tree: Any, other_name: str, other: Any) -> None:
    """Raises a ValueError that names both trees and their leaves where their structures differ."""
    found, expected = jax.tree.structure(tree), jax.tree.structure(other)
    if found == expected:
        return
    differing = sorted(flatten(tree).keys() ^ flatten(other).keys())
    if differing:
        raise ValueError(
            f"{name} and {other_name} have different leaves: {differing}; both need the same."
        )
    raise ValueError(
        f"{name} and {other_name} hold their leaves in different containers, {found} and "
        f"{expected}; both need the same."
    )


def require_like(name: str, tree: Any, params: Params) -> None:
    """Raises a ValueError unless a tree has the structure of the parameters, by shape alone.

    Args:
      name: of the argument that `tree` is.
      tree: its leaves must broadcast against those of the parameters.
      params: pytree of parameters.
    """
    require_structure(name, tree, "parameters", params)
    expected = flatten(params)
    for path, leaf in flatten(tree).items():
        shape, whole = jnp.shape(leaf), jnp.shape(expected[path])
        if not broadcasts(shape, whole):
            raise ValueError(
                f"{name} at {path!r} has shape {shape}, which does not broadcast to {whole}."
            )


def broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether an array of that shape broadcasts to the target's, and no further."""
    last = target[len(target) - len(shape) :]
    return len(shape) <= len(target) and all(n in (1, m) for n, m in zip(shape, last, strict=True))


def patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    """Several patterns of paths, of which one may be given alone.

    Raises:
      ValueError: neither of them.
    """
    several = (given,) if isinstance(given, str) else given
    if not isinstance(several, Iterable) or not all(isinstance(one, str) for one in several):
        raise ValueError(
            f"include and exclude take patterns of paths such as 'Conv_*/kernel', not {given!r}."
        )
    return tuple(several)


def weights(params: Params) -> tuple[str, ...]:
    """Paths of the weights: the leaves of rank two or more that hold any numbers.

    Not those whose own name is "bias", "scale" or "offset", whatever their rank, nor a "b" of rank
    three that is longer than 1 along one axis alone: with channels first Haiku's biases are such.
    """

    def is_weight(path: str, leaf: Any) -> bool:
        name, shape = path.rpartition("/")[-1], jnp.shape(leaf)
        is_bias = name == "b" and len(shape) == 3 and jnp.size(leaf) == max(shape)
        return name not in _NEVER_WEIGHTS and not is_bias and len(shape) >= 2 and 0 not in shape

    return tuple(path for path, leaf in flatten(params).items() if is_weight(path, leaf))


def prunable(
    params: Params, include: str | Sequence[str] = ("*",), exclude: str | Sequence[str] = ()
) -> tuple[str, ...]:
    """Paths of the leaves that pruning may touch, in the tree's order.

    Those are some of the `weights`. Biases and normalisation are never pruned.

    Args:
      params: pytree of parameters.
      include: a shell pattern or several; a path must match one of them, e.g. `["*Conv*"]`.
      exclude: likewise; a path that matches one of them is left alone.

    Raises:
      ValueError: a pattern matches no weight.
    """
    found = weights(params)
    include, exclude = patterns(include), patterns(exclude)
    for pattern in (*include, *exclude):
        if not fnmatch.filter(found, pattern):
            raise ValueError(f"Pattern {pattern!r} matches none of the weights {list(found)}.")

    def matches(path: str, any_of: Sequence[str]) -> bool:
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in any_of)

    return tuple(path for path in found if matches(path, include) and not matches(path, exclude))


def size(tree: Params) -> int:
    """How many numbers the tree holds."""
    return sum(jnp.size(leaf) for leaf in jax.tree.leaves(tree))


def drop(tree: Params, paths: Collection[str]) -> Params:
    """A tree without the leaves at these paths, and without dicts that are left empty.

    Lists and tuples keep their length, for their positions are in the paths: None stands there.

    Args:
      tree: of any containers; a key may itself have a "/", as Haiku's do.
      paths: of leaves.
    """
    return _without_empty(map_with_path(lambda path, x: None if path in paths else x, tree))


def _without_empty(tree: Params) -> Params:
    if not isinstance(tree, Mapping):
        return tree
    return {key: _without_empty(own) for key, own in tree.items() if jax.tree.leaves(own)}


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts with these leaves, a level for each part of a path."""
    return traverse_util.unflatten_dict(dict(leaves), sep="/")
