"""Names that stand for no source, and what must not be imported for those that do."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from prunejax import data

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("digit", "digits"), ("fashion-mnist", "fashion_mnist"), ("cifar-10", "cifar10")],
)
def test_unknown_name_gets_the_nearest_and_the_valid_ones(tmp_path, no_network, name, nearest):
    with pytest.raises(ValueError, match="is not a known data set") as caught:
        data.load(name, "train", data_dir=tmp_path)
    message = str(caught.value)
    assert f"name={name!r}" in message
    assert f"did you mean {nearest!r}?" in message
    assert "'digits', 'npz:PATH'" in message
    assert str(tmp_path) in message
    assert "every TFDS image-classification set" in message


def test_unknown_name_lists_what_is_prepared(tiny_dir, no_network):
    with pytest.raises(ValueError, match=r"\(mnist\)"):
        data.load("no such set", "train", data_dir=tiny_dir)


@pytest.mark.parametrize("name", ["", "/", ":", "huggingface:mnist", "../mnist", "npz"])
def test_odd_names_are_unknown(tiny_dir, no_network, name):
    with pytest.raises(ValueError, match="is not a known data set"):
        data.load(name, "train", data_dir=tiny_dir / "mnist")


def test_tensorflow_is_never_imported(tiny_dir, tmp_path):
    np.savez(tmp_path / "a.npz", test_images=np.zeros((1, 2, 2, 1), np.uint8), test_labels=[0])
    script = """
import socket, sys
def refuse(*args, **kwargs):
    sys.exit("network attempt")
socket.socket.connect = refuse
tiny_dir, npz, cache_dir = sys.argv[1:]
from prunejax import data
early = {"tensorflow", "tensorflow_datasets", "sklearn"} & set(sys.modules)
assert not early, early
for name in ("digits", "npz:" + npz, "mnist"):
    data.load(name, "test", data_dir=tiny_dir, cache_dir=cache_dir)
try:
    data.load("cifar10", "test", data_dir=tiny_dir)
except data.NotPreparedError:
    pass
try:
    data.load("no such set", "test", data_dir=tiny_dir)
except ValueError:
    pass
assert "tensorflow_datasets" in sys.modules
assert "tensorflow" not in sys.modules
print("done")
"""
    arguments = [tiny_dir, tmp_path / "a.npz", tmp_path / "cache"]
    result = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr


@pytest.mark.parametrize(
    ("package", "name"), [("sklearn", "digits"), ("tensorflow_datasets", "mnist")]
)
def test_missing_package_is_named_with_the_command(monkeypatch, package, name):
    for module in [key for key in sys.modules if key.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=f"'{name}'.*run `pip install"):
        data.load(name, "train")


def test_images_of_other_sources_are_not_scaled():
    with pytest.raises(ValueError, match="image_size is 9; the images of 'digits' are used"):
        data.load("digits", "test", image_size=9)
