"""Tiny TFDS sets, made on the spot, and the real ones where their archives are."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import pathlib
import socket
import struct
import subprocess
import sys
import urllib.parse
from collections.abc import Callable

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
ARCHIVES = ROOT.parent / "shared" / "data"
REAL_SETS = ("mnist", "fashion_mnist")
# Reading is the slow part, so the 54,000 of MNIST's train are left out.
REAL_SPLITS = {"mnist": "validation,test", "fashion_mnist": "train,validation,test"}


@pytest.fixture
def no_network(monkeypatch):
    """Makes every attempt to connect or to look up a host an error that nothing retries."""

    def refuse(*args, **kwargs):
        pytest.fail(f"network attempt: {args[1:]}")  # not an Exception, so it is not caught

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def no_tensorflow(monkeypatch):
    """Makes every import of TensorFlow fail, also where it is installed."""
    for module in [name for name in sys.modules if name.split(".")[0] == "tensorflow"]:
        monkeypatch.delitem(sys.modules, module)
    # Not None in sys.modules: TFDS looks there to see whether TensorFlow is loaded.
    monkeypatch.setattr(sys, "meta_path", [_WithoutTensorFlow(each) for each in sys.meta_path])


class _WithoutTensorFlow:
    """A finder of modules that finds what another one finds, but for TensorFlow."""

    def __init__(self, finder):
        self._finder = finder

    def __getattr__(self, name):
        return getattr(self._finder, name)

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] == "tensorflow":
            return None
        return self._finder.find_spec(fullname, path, target)


def write_idx(path: pathlib.Path, array: np.ndarray) -> None:
    """Writes a gzipped IDX file."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), mtime=0))


@dataclasses.dataclass(frozen=True)
class Archives:
    """A folder with four archives, and what is in them by split."""

    folder: pathlib.Path
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for split, prefix in (("train", "train"), ("test", "t10k")):
            write_idx(self.folder / f"{prefix}-images-idx3-ubyte.gz", self.images[split])
            write_idx(self.folder / f"{prefix}-labels-idx1-ubyte.gz", self.labels[split])

    def url_infos(self, stock: type) -> dict:
        """What TFDS would register for these files."""
        from tensorflow_datasets.core.download import checksums

        return {
            urllib.parse.urljoin(stock.URL, file.name): checksums.UrlInfo(
                size=file.stat().st_size,
                checksum=hashlib.sha256(file.read_bytes()).hexdigest(),
                filename=file.name,
            )
            for file in self.folder.glob("*.gz")
        }


def random_archives(folder: pathlib.Path, train: int, test: int, seed: int) -> Archives:
    """Writes archives of noise, in MNIST's form."""
    random = np.random.default_rng(seed)
    sizes = {"train": train, "test": test}
    archives = Archives(
        folder,
        {key: random.integers(0, 256, (n, 28, 28), np.uint8) for key, n in sizes.items()},
        {key: random.integers(0, 10, n, np.uint8) for key, n in sizes.items()},
    )
    archives.write()
    return archives


@pytest.fixture
def tiny_archives(tmp_path, monkeypatch) -> Archives:
    """60 + 20 random images as the archives of both sets, and registered as those by TFDS."""
    import tensorflow_datasets as tfds

    archives = random_archives(tmp_path / "archives", train=60, test=20, seed=0)
    for name in REAL_SETS:
        stock = tfds.builder_cls(name)
        monkeypatch.setattr(stock, "url_infos", archives.url_infos(stock))
    return archives


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory) -> pathlib.Path:
    """A data_dir with a `mnist` of 200 + 50 random images; not to be changed."""
    import tensorflow_datasets as tfds

    from prunejax.data import tfds_prepare

    folder = tmp_path_factory.mktemp("tiny")
    archives = random_archives(folder / "archives", train=200, test=50, seed=1)
    stock = tfds.builder_cls("mnist")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stock, "url_infos", archives.url_infos(stock))
        tfds_prepare.prepare("mnist", archives.folder, folder / "data")
    return folder / "data"


@pytest.fixture(scope="session")
def make_set():
    """Returns the function `_make_set`."""
    return _make_set


def _make_set(data_dir: pathlib.Path, name: str, features: dict, splits: dict, **options) -> None:
    """Prepares a set of the given examples with TFDS itself.

    Args:
      data_dir: where to.
      name: its name.
      features: TFDS's feature of each key.
      splits: the examples of each split, as lists.
      **options: further fields of TFDS's DatasetInfo.
    """
    import tensorflow_datasets as tfds

    set_name = name

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.2.3")
        name = set_name
        pkg_dir_path = None
        url_infos = None

        @classmethod
        def get_metadata(cls):
            return None

        def _info(self):
            features_dict = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features_dict, **options)

        def _split_generators(self, dl_manager):
            return {split: enumerate(examples) for split, examples in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError  # the generators are given above

    builder = Builder(data_dir=str(data_dir), file_format="array_record")
    builder.download_and_prepare(
        download_dir=data_dir / "downloads",
        download_config=tfds.download.DownloadConfig(try_download_gcs=False),
    )


_PREPARE_AND_LOAD = """
import runpy, socket, sys

def refuse(*args, **kwargs):
    sys.exit("network attempt")

socket.socket.connect = refuse
name, archives, data_dir, cache_dir, splits = sys.argv[1:]
sys.argv = ["prepare_data", f"--dataset={name}", f"--archives={archives}", f"--data_dir={data_dir}"]
try:
    runpy.run_module("experiments.prepare_data", run_name="__main__")
except SystemExit as end:
    if end.code:
        raise
from prunejax import data
for split in splits.split(","):
    data.load(name, split, data_dir=data_dir, cache_dir=cache_dir)
sys.exit("TensorFlow was imported" if "tensorflow" in sys.modules else 0)
"""


@pytest.fixture(scope="session")
def prepare_real(tmp_path_factory) -> Callable[[str], tuple[pathlib.Path, pathlib.Path]]:
    """A data_dir with a real set, MNIST or Fashion-MNIST, and a cache_dir with its REAL_SPLITS.

    A set is prepared by the command and loaded in a process of its own; both into one data_dir.
    """
    folder = tmp_path_factory.mktemp("real")

    @functools.cache
    def prepare(name):
        if not (ARCHIVES / name).is_dir():
            pytest.skip(f"the archives of {name} are not in ../shared/data")
        arguments = name, ARCHIVES / name, folder / "data", folder / "cache", REAL_SPLITS[name]
        done = subprocess.run(
            [sys.executable, "-c", _PREPARE_AND_LOAD, *map(str, arguments)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-2000:]
        return folder / "data", folder / "cache"

    return prepare
