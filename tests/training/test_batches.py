"""Batches: permutations, functions of (seed, epoch), and the right examples on the devices."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunejax.data import Dataset
from prunejax.training import batches


@given(st.integers(1, 60), st.data(), st.integers(0, 2**31), st.integers(0, 1000))
def test_an_epoch_is_a_permutation_but_for_what_fills_no_batch(number, data, seed, epoch):
    batch_size = data.draw(st.integers(1, number))
    indices = batches.epoch_indices(number, batch_size, seed, epoch)
    assert indices.shape == (number // batch_size, batch_size)
    assert len(np.unique(indices)) == indices.size
    assert np.all((indices >= 0) & (indices < number))


def test_a_full_epoch_has_every_example_once():
    indices = batches.epoch_indices(60, 12, seed=3, epoch=4)
    np.testing.assert_array_equal(np.sort(indices.ravel()), np.arange(60))


def test_order_is_a_function_of_seed_and_epoch():
    orders = {
        (seed, epoch): tuple(batches.epoch_indices(50, 10, seed, epoch).ravel())
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(set(orders.values())) == 16  # (1, 2) is not (2, 1)
    for (seed, epoch), order in orders.items():
        assert tuple(batches.epoch_indices(50, 10, seed, epoch).ravel()) == order


def test_the_batch_size_does_not_change_the_order():
    small, large = (batches.epoch_indices(60, size, 1, 2).ravel() for size in (5, 20))
    np.testing.assert_array_equal(small, large)


@pytest.mark.parametrize("batch_size", [0, -1, 11])
def test_an_impossible_batch_size_is_named(batch_size):
    with pytest.raises(ValueError, match=rf"batch_size is {batch_size}; .*\[1, 10\]"):
        batches.epoch_indices(10, batch_size, 0, 0)


def dataset():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(20, 3, 2, 2), dtype=np.uint8)
    return Dataset(images, np.arange(20) % 7, tuple("abcdefg"), "toy", "train")


@pytest.mark.parametrize("number_of_devices", [1, 2])
def test_devices_hold_what_numpy_indexing_gives(number_of_devices):
    devices = jax.devices()[:number_of_devices]
    if len(devices) < number_of_devices:
        pytest.skip("needs two devices")
    examples, indices = dataset(), batches.epoch_indices(20, 6, 0, 0)
    mesh = batches.data_mesh(devices)
    images, labels = batches.to_devices(examples, indices, mesh)

    assert images.dtype == np.uint8
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(images, examples.images[indices])
    np.testing.assert_array_equal(labels, examples.labels[indices])
    # Each device has its own part of every batch, all steps of it.
    assert {shard.device for shard in images.addressable_shards} == set(devices)
    width = 6 // number_of_devices
    for shard in images.addressable_shards:
        place = devices.index(shard.device)
        part = indices[:, place * width : (place + 1) * width]
        np.testing.assert_array_equal(shard.data, examples.images[part])


def test_only_the_examples_that_are_asked_for_are_read():
    examples = dataset()
    indices = np.array([[3, 3], [0, 19]])  # repeated examples are no problem either
    images, labels = batches.to_devices(examples, indices, batches.data_mesh(jax.devices()[:1]))
    np.testing.assert_array_equal(labels, [[3, 3], [0, 5]])
    np.testing.assert_array_equal(images, examples.images[indices])


def test_the_mesh_has_all_devices_along_one_axis():
    mesh = batches.data_mesh()
    assert mesh.axis_names == ("data",)
    assert list(mesh.devices) == jax.devices()
