"""Look something up by name, with an error that helps."""

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
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
    try:
        return table[name]
    except (KeyError, TypeError):  # a list, say, cannot even be looked for
        raise unknown(kind, name, table) from None


def require(kind: str, name: str, valid: Collection[str]) -> None:
    """Raises a ValueError that names the nearest and lists all unless a name is a valid one."""
    lookup(kind, name, dict.fromkeys(valid))


def build(
    kind: str,
    name: str,
    table: Mapping[str, Callable[..., T]],
    options: Mapping[str, Any],
    *,
    hidden: Collection[str] = (),
    **decided: Any,
) -> T:
    """What the class or function called `name` makes of these options; lists become tuples.

    Args:
      kind: what is built, for errors.
      name: a key of the table.
      table: what may be built.
      options: as somebody gave them.
      hidden: arguments that are nobody's options.
      **decided: arguments that are given besides, and are no options either.

    Raises:
      ValueError: an unknown name or option, naming the nearest and listing the valid ones, or an
        option without default that is not given.
    """
    make = lookup(kind, name, table)
    parameters = inspect.signature(make).parameters
    valid = {key: p for key, p in parameters.items() if key not in {*hidden, *decided}}
    for option in options:
        require(f"option of {kind} {name!r}", option, valid)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    for option, parameter in valid.items():
        required = parameter.kind in named and parameter.default is parameter.empty
        if required and option not in options:
            raise ValueError(f"{kind} {name!r} needs the option {option!r}; pass {option}=....")
    return make(**decided, **{key: _hashable(value) for key, value in options.items()})


def _hashable(value: Any) -> Any:
    """Lists as tuples, also inside lists: what is built is hashed by its attributes."""
    return tuple(map(_hashable, value)) if type(value) in (list, tuple) else value
