"""Arrays kept on disk between runs, as uncompressed .npz files."""

from __future__ import annotations

import contextlib
import os
import pathlib
import uuid
import warnings
from collections.abc import Mapping

import numpy as np


def default_dir() -> pathlib.Path:
    """Returns `prunejax/data` in XDG_CACHE_HOME or, where that is unset, in `~/.cache`."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(root).expanduser() / "prunejax" / "data"


def read(path: pathlib.Path) -> dict[str, np.ndarray] | None:
    """Returns the arrays of a cache file, or None where it is absent or damaged."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except Exception:  # damage shows in many ways, even as MemoryError, and all mean: rebuild
        return None


def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a cache file, whole or not at all; a full or read-only disk is only warned of.

    Args:
      path: the file; its folders are made.
      arrays: what to keep in it.
    """
    # A name of its own, so that two runs at once do not write into the same file.
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    except OSError as error:
        # The arrays are in memory by now, so the run can go on.
        warnings.warn(f"cache_dir={str(path.parent)!r} cannot be written: {error}.", stacklevel=2)
    finally:
        with contextlib.suppress(OSError):  # not there, or its folder cannot be used at all
            temporary.unlink()
