"""Plain .npz files come back as they were written, and faulty ones are named."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from prunejax import data

IMAGES = np.arange(3 * 4 * 5 * 2, dtype=np.uint8).reshape(3, 4, 5, 2)


def save(folder, **arrays):
    path = folder / "set.npz"
    np.savez(path, **arrays)
    return path


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    images=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=4, max_dims=4, max_side=4)),
    dtype=st.sampled_from([np.uint8, np.int32, np.int64]),
    compressed=st.booleans(),
)
def test_round_trip(tmp_path, images, dtype, compressed):
    labels = np.arange(len(images), dtype=dtype)
    names = np.array([f"class {label}" for label in labels])
    path = tmp_path / "set.npz"
    write = np.savez_compressed if compressed else np.savez
    write(path, fold1_images=images, fold1_labels=labels, class_names=names)

    loaded = data.load(f"npz:{path}", "fold1")

    np.testing.assert_array_equal(loaded.images, images)
    np.testing.assert_array_equal(loaded.labels, labels)
    assert loaded.labels.dtype == np.int32
    assert loaded.class_names == tuple(names)
    assert (loaded.name, loaded.split) == (f"npz:{path}", "fold1")


def test_without_names_all_splits_have_the_classes_of_the_file(tmp_path):
    path = save(
        tmp_path,
        train_images=IMAGES,
        train_labels=np.array([0, 1, 4]),
        test_images=IMAGES[:1],
        test_labels=np.array([2]),
    )
    for split in ("train", "test"):
        assert data.load(f"npz:{path}", split).class_names == ("0", "1", "2", "3", "4")


def test_home_folder_is_expanded(tmp_path, monkeypatch):
    save(tmp_path, test_images=IMAGES, test_labels=np.array([0, 1, 0]))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(data.load("npz:~/set.npz", "test")) == 3


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.npz"):
        data.load(f"npz:{tmp_path}/nowhere.npz", "train")


def test_missing_arrays_list_what_is_there(tmp_path):
    path = save(tmp_path, train_images=IMAGES, train_labels=np.arange(3), test_images=IMAGES)
    with pytest.raises(ValueError, match="needs the array") as caught:
        data.load(f"npz:{path}", "test")
    message = str(caught.value)
    assert "'test_labels'" in message
    assert str(path) in message
    assert "keys test_images, train_images, train_labels" in message
    assert "splits train." in message
    with pytest.raises(ValueError, match="'valid_images'"):
        data.load(f"npz:{path}", "valid")


@pytest.mark.parametrize("content", [b"", b"no zip file", b"PK\x03\x04 cut off"])
def test_unreadable_file_is_named(tmp_path, content):
    path = tmp_path / "set.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"set.npz.* is not a readable .npz file"):
        data.load(f"npz:{path}", "train")


def test_single_array_is_refused(tmp_path):
    np.save(tmp_path / "one.npy", IMAGES)
    with pytest.raises(ValueError, match=r"one.npy.*single array.*'train_images'"):
        data.load(f"npz:{tmp_path / 'one.npy'}", "train")


def test_damaged_array_is_named(tmp_path):
    path = save(tmp_path, train_images=IMAGES, train_labels=np.arange(3))
    content = bytearray(path.read_bytes())
    content[content.index(IMAGES.tobytes()) + 7] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"set.npz.*'train_images' cannot be read"):
        data.load(f"npz:{path}", "train")


def test_python_objects_are_refused(tmp_path):
    path = save(
        tmp_path,
        train_images=IMAGES,
        train_labels=np.arange(3),
        class_names=np.array(["a", "b", None], object),
    )
    with pytest.raises(ValueError, match=r"'class_names' cannot be read.*not of Python objects"):
        data.load(f"npz:{path}", "train")


def test_content_of_another_type_is_named(tmp_path):
    path = save(tmp_path, train_images=IMAGES / 255, train_labels=np.arange(3))
    with pytest.raises(ValueError, match=r"set.npz.*'train'.*images has dtype float64.*uint8"):
        data.load(f"npz:{path}", "train")


def test_labels_that_are_no_integers_are_named(tmp_path):
    path = save(tmp_path, train_images=IMAGES, train_labels=np.array(["a", "b", "c"]))
    with pytest.raises(ValueError, match=r"set.npz.*labels has dtype <U1.*integer"):
        data.load(f"npz:{path}", "train")
