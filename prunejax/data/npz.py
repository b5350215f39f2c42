"""Data sets in plain NumPy .npz files."""

from __future__ import annotations

import os
import pathlib
import zipfile

import numpy as np

from prunejax.data.dataset import Dataset


def load(path: str | os.PathLike[str], split: str) -> Dataset:
    """Loads a split from a file written by `numpy.savez`.

    Args:
      path: a file with uint8 `{split}_images` `[N, H, W, C]` and integer `{split}_labels`
        `[N]` for each of its splits, and optionally `class_names`, an array of strings.
        Without `class_names` the classes are numbered up to the largest label of all splits.
      split: the split, any name for which the file has both arrays.

    Returns:
      The split, in the order of the file.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not an .npz file, lacks the arrays or holds what a `Dataset` cannot.
    """
    source = pathlib.Path(path).expanduser()
    try:
        archive = np.load(source, allow_pickle=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"path={str(path)!r}: there is no such .npz file.") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"path={str(path)!r} is not a readable .npz file: {error}.") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError(
            f"path={str(path)!r} holds a single array: accepted is an .npz file with the arrays "
            f"'{split}_images' and '{split}_labels'."
        )

    with archive:
        keys = sorted(archive.files)
        missing = [key for key in (f"{split}_images", f"{split}_labels") if key not in keys]
        if missing:
            raise ValueError(
                f"split={split!r} needs the array {missing[0]!r}, which path={str(path)!r} does "
                f"not have: it has the keys {', '.join(keys) or '(none)'}, and so the splits "
                f"{', '.join(_splits(keys)) or '(none)'}."
            )
        images = _array(archive, f"{split}_images", path)
        labels = _array(archive, f"{split}_labels", path)
        class_names = _class_names(archive, path)
    try:
        return Dataset(images, labels, class_names, name=f"npz:{path}", split=split)
    except ValueError as error:
        raise ValueError(f"path={str(path)!r}, split={split!r}: {error}") from error


def _splits(keys: list[str]) -> list[str]:
    stems = [key.removesuffix("_images") for key in keys if key.endswith("_images")]
    return [stem for stem in stems if f"{stem}_labels" in keys]


def _array(archive: np.lib.npyio.NpzFile, key: str, path: str | os.PathLike[str]) -> np.ndarray:
    try:
        return archive[key]
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"path={str(path)!r}: the array {key!r} cannot be read ({error}); accepted are "
            "undamaged arrays of numbers or strings, not of Python objects."
        ) from error


def _class_names(archive: np.lib.npyio.NpzFile, path: str | os.PathLike[str]) -> tuple[str, ...]:
    if "class_names" in archive.files:
        return tuple(map(str, np.atleast_1d(_array(archive, "class_names", path))))
    # All splits are looked at, so that each of them has the same number of classes.
    labels = [_array(archive, f"{split}_labels", path) for split in _splits(archive.files)]
    integers = [each for each in labels if each.size and np.issubdtype(each.dtype, np.integer)]
    largest = max((int(each.max()) for each in integers), default=-1)
    return tuple(str(label) for label in range(largest + 1))
