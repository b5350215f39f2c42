"""Pruned networks on disk: of each leaf the numbers that its mask keeps, and where they belong."""

import math
import os
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import masks, trees

Params = Any
Mask = Any

# Entries of a leaf that the mask covers; the others are stored under their path, as they are.
_PARTS = (":kept", ":mask", ":shape", ":mask_shape")
# In a file's metadata, beside the types of tensors by their names.
CHECKSUM = ":checksum"


def pack(params: Params, mask: Mask) -> dict[str, np.ndarray]:
    """What is left of the parameters, as named arrays.

    A leaf whose mask is a scalar `True` is stored as it is. Of the others "path:kept" holds the
    kept numbers in order, "path:mask" the mask in its own shape, which may broadcast, as bits that
    zlib has compressed. At density 0.01 that is 0.1 bits a weight (the entropy is 0.08), where the
    kept numbers take 0.32 and plain bits would take 1.

    Args:
      params: pytree of parameters, or of all variables (`masks.of_variables`). Of keys of random
        numbers their data is stored.
      mask: of the same structure.

    Raises:
      ValueError: the mask has another structure, or does not fit.
    """
    masks.validate(params, mask)
    packed, keeps = {}, trees.flatten(mask)
    for path, leaf in trees.flatten(params).items():
        if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        leaf, keep = np.asarray(leaf), np.asarray(keeps[path])
        if keep.ndim == 0 and keep:
            packed[path] = leaf
            continue
        bits = zlib.compress(np.packbits(keep.ravel()).tobytes(), level=9)
        parts = (
            leaf[np.broadcast_to(keep, leaf.shape)],
            np.frombuffer(bits, np.uint8),
            np.array(leaf.shape, np.int64),
            np.array(keep.shape, np.int64),
        )
        packed |= {path + part: value for part, value in zip(_PARTS, parts, strict=True)}
    return packed


def unpack(packed: Mapping[str, np.ndarray], template: Params | None = None) -> tuple[Params, Mask]:
    """The parameters, bit for bit, with zeros where the mask removed them; and the mask.

    Args:
      packed: from `pack`.
      template: a tree whose structure the results take, leaves by path; nested dicts by default,
        a level for each part of a path. Needed for other trees, and for keys with a "/" (Haiku).

    Returns:
      NumPy arrays, for JAX would shorten numbers of 64 bits; and the mask.

    Raises:
      ValueError: an entry that is missing or damaged, or another template.
    """
    paths = dict.fromkeys(map(_path, packed))
    leaves = {path: _leaf(packed, path) for path in paths}
    if template is None:
        return tuple(trees.nested({path: pair[i] for path, pair in leaves.items()}) for i in (0, 1))
    wanted = trees.flatten(template).keys()
    if wanted != leaves.keys():
        differing = sorted(wanted ^ leaves.keys())
        raise ValueError(f"template and packed parameters have different leaves: {differing}.")
    return tuple(
        trees.unflatten(template, {path: pair[i] for path, pair in leaves.items()}) for i in (0, 1)
    )


def serialized(params: Params, mask: Mask) -> bytes:
    """`pack(params, mask)` as what a safetensors file holds.

    Types that NumPy does not know itself, such as bfloat16, are stored as integers of their bits;
    the metadata names them, and has a checksum of everything. Args and errors as in `pack`.
    """
    from safetensors.numpy import save

    tensors, types = {}, {}
    for name, value in pack(params, mask).items():
        if value.dtype.isbuiltin == 2:  # a type that another package has registered
            types[name] = value.dtype.name
            value = value.view(f"u{value.dtype.itemsize}")
        tensors[name] = np.ascontiguousarray(value).reshape(value.shape)
    return save(tensors, metadata=types | {CHECKSUM: _checksum(tensors, types)})


def load(path: str | os.PathLike, template: Params | None = None) -> tuple[Params, Mask]:
    """The parameters and the mask of a file that holds what `serialized` gives.

    Args:
      path: of the file.
      template: as in `unpack`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, or holds other leaves than the template.
    """
    from safetensors import SafetensorError, safe_open

    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"No packed network at {path}.")
    try:
        with safe_open(path, framework="numpy") as file:
            types = file.metadata() or {}
            packed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error}).") from error
    try:
        if types.pop(CHECKSUM, None) != _checksum(packed, types):
            raise ValueError("its checksum is that of other numbers.")
        for name, dtype in types.items():
            packed[name] = packed[name].view(jnp.dtype(dtype))
        return unpack(packed, template)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not hold what it should: {error}") from error


def _checksum(tensors: Mapping[str, np.ndarray], types: Mapping[str, str]) -> str:
    found = zlib.crc32(repr(sorted(types.items())).encode())
    for name, value in sorted(tensors.items()):
        found = zlib.crc32(f"{name} {value.dtype} {value.shape}".encode(), found)
        found = zlib.crc32(value.tobytes(), found)
    return str(found)


def _path(name: str) -> str:
    """Of the leaf that an entry belongs to."""
    return next((name.removesuffix(part) for part in _PARTS if name.endswith(part)), name)


def _leaf(packed: Mapping[str, np.ndarray], path: str) -> tuple[np.ndarray, Any]:
    """A leaf and its mask."""
    if path in packed:
        return packed[path], jnp.array(True)
    missing = [path + part for part in _PARTS if path + part not in packed]
    if missing:
        raise ValueError(f"packed parameters have no entry for {missing}.")
    kept, bits, shape, mask_shape = (packed[path + part] for part in _PARTS)
    shape, mask_shape = tuple(shape.tolist()), tuple(mask_shape.tolist())
    try:
        bits = np.frombuffer(zlib.decompress(bits.tobytes()), np.uint8)
    except zlib.error as error:
        raise ValueError(f"the mask of {path!r} is damaged ({error}).") from error
    if bits.size != -(-math.prod(mask_shape) // 8):  # numpy would fill up with zeros
        raise ValueError(f"the mask of {path!r} has too few or too many bits for {mask_shape}.")
    keep = np.unpackbits(bits, count=math.prod(mask_shape)).astype(bool).reshape(mask_shape)
    if not masks.fits(keep, np.broadcast_to(False, shape)):
        raise ValueError(
            f"the mask of {path!r} has shape {mask_shape}, which does not fit {shape}."
        )
    everywhere = np.broadcast_to(keep, shape)
    if kept.shape != (everywhere.sum(),):
        raise ValueError(f"{path!r} has {kept.size} numbers; its mask keeps {everywhere.sum()}.")
    leaf = np.zeros(shape, kept.dtype)
    leaf[everywhere] = kept
    return leaf, jnp.asarray(keep)
