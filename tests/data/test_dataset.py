"""What a Dataset accepts, refuses and derives."""

import dataclasses

import numpy as np
import pytest

from prunejax.data import Dataset

NAMES = ("cat", "dog", "eel")


def dataset(**changes):
    fields = dict(
        images=np.arange(4 * 2 * 3 * 1, dtype=np.uint8).reshape(4, 2, 3, 1),
        labels=np.array([0, 2, 1, 0], np.int32),
        class_names=NAMES,
        name="animals",
        split="train",
    )
    return Dataset(**{**fields, **changes})


def test_derived_properties():
    animals = dataset()
    assert len(animals) == 4
    assert animals.num_classes == 3
    assert animals.image_shape == (2, 3, 1)


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset().split = "test"


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64])
def test_labels_of_any_integer_type_become_int32(dtype):
    labels = dataset(labels=np.array([0, 2, 1, 0], dtype)).labels
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, [0, 2, 1, 0])


@pytest.mark.parametrize("n", range(5))
def test_take_returns_the_first_examples(n):
    taken = dataset().take(n)
    np.testing.assert_array_equal(taken.images, dataset().images[:n])
    np.testing.assert_array_equal(taken.labels, [0, 2, 1, 0][:n])
    assert (taken.class_names, taken.name, taken.split) == (NAMES, "animals", "train")


@pytest.mark.parametrize("n", [5, -1])
def test_take_refuses_what_is_not_there(n):
    with pytest.raises(ValueError, match=rf"n={n} .*'animals'.*0 to 4"):
        dataset().take(n)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(images=np.zeros((4, 2, 3, 1), np.float32)), "images.*float32.*uint8"),
        (dict(images=np.zeros((4, 2, 3), np.uint8)), r"images.*\(4, 2, 3\).*rank 4"),
        (dict(labels=np.zeros(4, np.float32)), "labels.*float32.*integer"),
        (dict(labels=np.zeros(3, np.int32)), r"labels.*\(3,\).*\(4,\)"),
        (dict(labels=np.zeros((4, 1), np.int32)), r"labels.*\(4, 1\).*\(4,\)"),
        (dict(labels=np.array([0, 1, 3, 0])), "labels holds 3.*0 to 2.*3 entries"),
        (dict(labels=np.array([0, -1, 2, 0])), "labels holds -1.*0 to 2"),
        # Larger than int32 holds: it must not wrap around into the range.
        (dict(labels=np.array([0, 2**32, 1, 0])), "labels holds 4294967296"),
        (dict(class_names=()), "class_names has 0 entries"),
    ],
)
def test_refuses_other_types_shapes_and_ranges(changes, message):
    with pytest.raises(ValueError, match=message):
        dataset(**changes)
