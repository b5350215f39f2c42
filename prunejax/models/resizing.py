"""Channel counts of networks made physically smaller: read off the shapes, and checked."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


def outputs(shapes: Mapping[str, Sequence[int]], layers: Iterable[str]) -> tuple[int, ...]:
    """Output channels or units of each layer: the last axis of its kernel.

    Args:
      shapes: shapes of parameters by path, `{"Conv_0/kernel": (3, 3, 3, 16), ...}`.
      layers: paths of the layers, such as "Conv_0".

    Raises:
      ValueError: a layer's kernel is not among the shapes, or has no outputs.
    """
    paths = [f"{layer}/kernel" for layer in layers]
    for path in paths:
        if path not in shapes:
            raise ValueError(
                f"shapes has no {path!r}; resized changes channel counts and keeps every layer."
            )
        if not shapes[path][-1]:
            raise ValueError(
                f"shapes has no channels in {path!r}, {tuple(shapes[path])}; every layer must keep "
                "at least one."
            )
    return tuple(int(shapes[path][-1]) for path in paths)


def common(counts: Sequence[int], what: str) -> int:
    """The one number that they all are; they are added up, hence must be equal."""
    if len(set(counts)) > 1:
        raise ValueError(f"{what} has blocks of {list(counts)} channels; a sum needs equal ones.")
    return counts[0]


def chosen(name: str, given: tuple[T, ...] | None, nominal: tuple[T, ...]) -> tuple[T, ...]:
    """The given counts, or the nominal ones where None are given.

    Raises:
      ValueError: more or fewer counts than the network has layers of this kind.
    """
    if given is not None and len(given) != len(nominal):
        raise ValueError(
            f"{name} has {len(given)} entries; this network needs {len(nominal)}, "
            f"such as {nominal}."
        )
    return nominal if given is None else given
