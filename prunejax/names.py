"""Look something up by name, with an error that helps."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def unknown(kind: str, name: str, valid: Iterable[str]) -> ValueError:
    """The error for a name that is not among the valid ones: it names the nearest and lists all."""
    valid = sorted(valid)
    nearest = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return ValueError(f"Unknown {kind} {name!r}.{hint} Valid: {', '.join(valid)}.")


def lookup(kind: str, name: str, table: Mapping[str, T]) -> T:
    """`table[name]`, or a ValueError that names the nearest key and lists the valid ones."""
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]


def build(kind: str, name: str, table: Mapping[str, type[T]], options: Mapping[str, Any]) -> T:
    """The dataclass called `name` with these fields; lists become tuples, for it is hashed.

    Raises:
      ValueError: an unknown name or field, naming the nearest and listing the valid ones.
    """
    cls = lookup(kind, name, table)
    valid = [field.name for field in dataclasses.fields(cls)]
    for option in options:
        if option not in valid:
            raise unknown(f"option of {kind} {name!r}", option, valid)
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})
