"""MNIST and Fashion-MNIST for TFDS from their archives, without network or TensorFlow.

TFDS's own builders read and encode images with TensorFlow. Here a subclass of each reads the
archives with NumPy and encodes the same pixels, under the same keys and so in the same order,
and all else is TFDS's: the checksums, the splits, the files. What results is an ordinary
prepared set, which `tfds.data_source` reads without this module.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import pathlib
import struct
import tempfile
import urllib.parse
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from prunejax.data import tfds_read

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


class PrepareError(ValueError):
    """The archives or the target folder are not such that a set can be prepared."""


def prepare(
    name: str,
    archives: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
) -> pathlib.Path:
    """Prepares a set as array_record files in `data_dir`; does nothing where it is prepared.

    The set's folder appears in `data_dir` under its name only once it is complete.

    Args:
      name: `"mnist"` or `"fashion_mnist"`.
      archives: the folder with the set's four original `*-ubyte.gz` files.
      data_dir: where to prepare; `tfds_read.default_data_dir()` by default.

    Returns:
      The set's folder, `data_dir/name/version`.

    Raises:
      PrepareError: for another name, an archive that is missing or does not have the SHA-256
        that TFDS registers for it, or a folder of that name with anything else in it.
      ModuleNotFoundError: if `tensorflow-datasets` is not installed.
    """
    if name not in tfds_read.FROM_ARCHIVES:
        raise PrepareError(
            f"name={name!r} cannot be prepared from archives: "
            f"accepted are {', '.join(tfds_read.FROM_ARCHIVES)}."
        )
    done = prepared_dir(name, data_dir)
    if done is not None:
        return done
    import tensorflow_datasets as tfds

    stock = tfds.builder_cls(name)
    source = pathlib.Path(archives).expanduser().absolute()
    root = pathlib.Path(data_dir).expanduser() if data_dir else tfds_read.default_data_dir()
    builder = _offline_builder(stock)(data_dir=str(root.absolute()), file_format="array_record")
    if os.path.exists(builder.data_dir):
        raise PrepareError(
            f"data_dir={str(root)!r}: {builder.data_dir} exists and is not a complete prepared "
            "set: delete it or give another data_dir."
        )
    _check_archives(stock, source)

    # A download folder for this call alone: MNIST and Fashion-MNIST have the same file names,
    # and TFDS would build the second one from what it keeps of the first.
    with tempfile.TemporaryDirectory() as downloads:
        builder.download_and_prepare(
            download_dir=downloads,
            download_config=tfds.download.DownloadConfig(
                manual_dir=source, try_download_gcs=False, force_checksums_validation=True
            ),
        )
    return pathlib.Path(builder.data_dir)


def prepared_dir(name: str, data_dir: str | os.PathLike[str] | None = None) -> pathlib.Path | None:
    """Returns the folder of a set that is already prepared, or None.

    Args:
      name: a TFDS name.
      data_dir: the folder to search; `tfds_read.default_data_dir()` by default.

    Raises:
      PrepareError: if the set is prepared, but not as array_record files.
    """
    try:
        return pathlib.Path(tfds_read.open_prepared(name, data_dir).data_dir)
    except tfds_read.NotPreparedError:
        return None
    except ValueError as error:
        raise PrepareError(str(error)) from error


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a gzipped IDX file of unsigned bytes.

    The format: two zero bytes, a byte for the type (8: unsigned byte), a byte for the rank,
    each dimension as a big-endian 32-bit integer, the elements in row-major order.

    Args:
      path: the file.

    Returns:
      A read-only uint8 array.

    Raises:
      ValueError: if the file's content is not that.
    """
    with gzip.open(path) as file:
        content = file.read()
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"path={os.fspath(path)!r} is not a gzipped IDX file of unsigned bytes.")
    rank = content[3]
    shape = struct.unpack_from(f">{rank}I", content, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def encode_png(image: np.ndarray) -> bytes:
    """Encodes a grey image as PNG, several times as fast as a general image library.

    Args:
      image: uint8 `[H, W]`.

    Returns:
      The content of a PNG file (ISO/IEC 15948) with exactly these pixels.
    """
    height, width = image.shape
    # 8 bits a sample, grey, deflate, the one filter method, not interlaced
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = np.zeros((height, width + 1), np.uint8)  # a row begins with its filter, 0: none
    rows[:, 1:] = image
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), level=1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _offline_builder(stock: type[tfds.core.DatasetBuilder]) -> type[tfds.core.DatasetBuilder]:
    """Returns a subclass of a stock builder that needs no TensorFlow to prepare its set."""

    class OfflineBuilder(stock, skip_registration=True):
        name = stock.name
        url_infos = stock.url_infos  # else looked for beside this file

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
            urls = {file: _url(stock, file) for files in _FILES.values() for file in files}
            paths = dl_manager.download(urls)  # verifies the SHA-256 of each
            return {
                split: self._generate_examples(paths[images], paths[labels])
                for split, (images, labels) in _FILES.items()
            }

        def _generate_examples(
            self, images: str, labels: str
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            # The stock builder's keys: TFDS orders the records by a hash of them.
            for index, (image, label) in enumerate(
                zip(read_idx(images), read_idx(labels), strict=True)
            ):
                yield index, {"image": encode_png(image), "label": int(label)}

    # The files record the module that made them; readers should find the stock builder there.
    OfflineBuilder.__module__ = stock.__module__
    return OfflineBuilder


def _url(stock: type[tfds.core.DatasetBuilder], file: str) -> str:
    return urllib.parse.urljoin(stock.URL, file)


def _check_archives(stock: type[tfds.core.DatasetBuilder], archives: pathlib.Path) -> None:
    """Finds what is wrong before TFDS does: it would turn to the network for a missing file."""
    files = [file for pair in _FILES.values() for file in pair]
    missing = [file for file in files if not (archives / file).is_file()]
    if missing:
        raise PrepareError(
            f"archives={str(archives)!r} lacks {', '.join(missing)}: "
            f"give the folder with the four original archives of {stock.name!r}."
        )
    for file in files:
        with open(archives / file, "rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        expected = stock.url_infos[_url(stock, file)].checksum
        if digest != expected:
            raise PrepareError(
                f"archives={str(archives)!r}: {file} is damaged or not that of {stock.name!r}, "
                f"its SHA-256 is {digest} and TFDS registers {expected}: get the file again."
            )
