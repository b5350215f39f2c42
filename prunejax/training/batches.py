"""Batches as a function of (seed, epoch), with each process holding only its own part."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prunejax.data import Dataset


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """These devices, or all of all processes, along one axis, "data"."""
    return Mesh(np.array(jax.devices() if devices is None else devices), ("data",))


def epoch_indices(number: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """`[steps, batch_size]` example indices: a permutation; what fills no batch is left out.

    Raises:
      ValueError: a batch larger than the data set.
    """
    if not 1 <= batch_size <= number:
        raise ValueError(f"batch_size is {batch_size}; it must lie in [1, {number}], the data set.")
    order = np.random.default_rng((seed, epoch)).permutation(number)
    return order[: number // batch_size * batch_size].reshape(-1, batch_size)


def some(number: int, wanted: int, seed: int) -> np.ndarray:
    """`[wanted]` indices of different examples, drawn at random; all of them where it has fewer."""
    return np.random.default_rng((seed, number)).permutation(number)[:wanted]


def to_devices(dataset: Dataset, indices: np.ndarray, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    """Images uint8 `[steps, B, H, W, C]` and labels `[steps, B]`, sharded along the batch.

    Each process reads only the examples of its own devices.

    Args:
      dataset: the examples.
      indices: `[steps, B]`, the same on all processes.
      mesh: from `data_mesh`; its size divides B.
    """
    sharding = NamedSharding(mesh, PartitionSpec(None, "data"))

    def shard(array: np.ndarray) -> jax.Array:
        shape = (*indices.shape, *array.shape[1:])
        return jax.make_array_from_callback(shape, sharding, lambda part: array[indices[part[:2]]])

    return shard(dataset.images), shard(dataset.labels)
