"""The digits are scikit-learn's, divided without overlap, by class, and always alike."""

import hashlib

import numpy as np
import pytest
import sklearn.datasets

from prunejax import data
from prunejax.data import digits

SPLITS = ("train", "validation", "test")
DIGEST = "1454dd0de4448845f2f25cd43921cba8b4d8177886a61f60f3e56860f57627a4"
SIZES = {"train": 1197, "validation": 200, "test": 400}


@pytest.fixture(scope="module")
def splits():
    return {split: data.load("digits", split) for split in SPLITS}


def test_sizes_and_shape(splits):
    assert {split: len(dataset) for split, dataset in splits.items()} == SIZES
    for dataset in splits.values():
        assert dataset.image_shape == (8, 8, 1)
        assert dataset.class_names == tuple("0123456789")


def test_the_splits_together_are_the_source():
    labels = sklearn.datasets.load_digits().target
    indices = digits.split_indices(labels)
    together = np.concatenate([indices[split] for split in SPLITS])
    # A permutation of 0..1796: nothing twice, so disjoint, and nothing missing.
    np.testing.assert_array_equal(np.sort(together), np.arange(1797))


def test_the_content_is_the_source_scaled(splits):
    source = sklearn.datasets.load_digits()
    indices = digits.split_indices(source.target)
    for split, dataset in splits.items():
        values = source.images[indices[split]].astype(int)
        scaled = np.vectorize(lambda value: round(value * 255 / 16))(values)
        np.testing.assert_array_equal(dataset.images[..., 0], scaled)
        np.testing.assert_array_equal(dataset.labels, source.target[indices[split]])


def test_all_seventeen_grey_values_stay_distinct_and_reach_the_ends(splits):
    levels = np.unique(np.concatenate([dataset.images.ravel() for dataset in splits.values()]))
    assert len(levels) == 17
    assert (levels[0], levels[-1]) == (0, 255)


def test_stratified(splits):
    np.testing.assert_array_equal(np.bincount(splits["test"].labels), [40] * 10)
    np.testing.assert_array_equal(np.bincount(splits["validation"].labels), [20] * 10)
    source = np.bincount(sklearn.datasets.load_digits().target)
    np.testing.assert_array_equal(np.bincount(splits["train"].labels), source - 60)


@pytest.mark.parametrize("split", SPLITS)
def test_the_first_examples_are_balanced_too(splits, split):
    for n in (10, 50, 200):
        np.testing.assert_array_equal(np.bincount(splits[split].take(n).labels), [n // 10] * 10)


def test_the_division_is_the_same_everywhere():
    """The digest was recorded once; another machine or version that differs is a mistake."""
    indices = digits.split_indices(sklearn.datasets.load_digits().target)
    content = b"".join(indices[split].astype("<i4").tobytes() for split in SPLITS)
    assert hashlib.sha256(content).hexdigest() == DIGEST


def test_the_division_mixes_the_source(splits):
    """Neighbours in the source come from one writer; a split must not be a stretch of it."""
    indices = digits.split_indices(sklearn.datasets.load_digits().target)
    for split in SPLITS:
        quarters = np.bincount(indices[split] * 4 // 1797, minlength=4) / SIZES[split]
        np.testing.assert_allclose(quarters, 0.25, atol=0.08)


def test_unknown_split_names_the_three():
    with pytest.raises(ValueError, match=r"'tset'.*train, validation, test.*mean 'test'"):
        data.load("digits", "tset")
    with pytest.raises(ValueError, match=r"'train\[:10\]'.*train, validation, test"):
        data.load("digits", "train[:10]")
