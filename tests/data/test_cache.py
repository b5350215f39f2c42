"""A cache file is whole or absent, and a damaged one counts as absent."""

import numpy as np
import pytest

from prunejax.data import cache

ARRAYS = {"images": np.arange(600, dtype=np.uint8).reshape(10, 60), "labels": np.arange(10)}


def assert_same(arrays):
    assert arrays is not None
    assert set(arrays) == set(ARRAYS)
    for key, expected in ARRAYS.items():
        np.testing.assert_array_equal(arrays[key], expected)
        assert arrays[key].dtype == expected.dtype


def test_round_trip_leaves_one_file(tmp_path):
    path = tmp_path / "new" / "folder" / "set.npz"
    assert cache.read(path) is None
    cache.write(path, ARRAYS)
    assert_same(cache.read(path))
    assert [file.name for file in path.parent.iterdir()] == ["set.npz"]


def test_cut_off_anywhere_it_counts_as_absent(tmp_path):
    path = tmp_path / "set.npz"
    cache.write(path, ARRAYS)
    content = path.read_bytes()
    for length in range(0, len(content), 13):
        path.write_bytes(content[:length])
        assert cache.read(path) is None, length


def test_a_changed_pixel_counts_as_damage(tmp_path):
    path = tmp_path / "set.npz"
    cache.write(path, ARRAYS)
    content = bytearray(path.read_bytes())
    content[content.index(ARRAYS["images"].tobytes()) + 100] ^= 4
    path.write_bytes(content)
    assert cache.read(path) is None


def test_a_failed_write_keeps_the_file_before_it(tmp_path, monkeypatch):
    path = tmp_path / "set.npz"
    cache.write(path, ARRAYS)

    def fill_the_disk(file, **arrays):
        file.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", fill_the_disk)
    with pytest.warns(UserWarning, match=r"cache_dir=.*No space left"):
        cache.write(path, {"images": np.zeros(3)})
    assert_same(cache.read(path))
    assert [file.name for file in tmp_path.iterdir()] == ["set.npz"]


def test_default_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default_dir() == tmp_path / "prunejax" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.default_dir() == tmp_path / ".cache" / "prunejax" / "data"
