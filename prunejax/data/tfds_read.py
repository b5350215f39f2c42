"""Image-classification sets that TensorFlow Datasets (TFDS) prepared, read without TensorFlow.

The files are looked for first and read through what they say of themselves, not through the
set's builder: a builder may turn to the network and try again for minutes.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import pathlib
import re
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from prunejax.data import cache
from prunejax.data.dataset import Dataset

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

FROM_ARCHIVES = ("mnist", "fashion_mnist")  # those that prunejax.data.tfds_prepare can make
_CHUNK = 2000  # examples a call: reading them one by one takes three times as long
_NAME = r"(?P<base>\w+)(/[\w.-]+)?(:[\d.*]+)?"  # name[/config][:version]
_WITHOUT_VALIDATION = {"train": "train[:90%]", "validation": "train[90%:]"}


class NotPreparedError(FileNotFoundError):
    """A data set that TFDS knows has no files in the folder searched."""


def load(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Dataset:
    """Loads a split of a prepared TFDS set; arguments and splits as of `prunejax.data.load`.

    The arrays are kept in `cache_dir` under the set's name, version, split and image size, and
    under the sizes of its splits, so that a set prepared again with other content is read again.

    Raises:
      NotPreparedError: if `data_dir` has no files of the set, at once and without network.
      ValueError: if the name or split is unknown, or the set is not of the kind accepted: one
        uint8 image, of a fixed size unless `image_size` is given, with one class label an example,
        as array_record files.
      ModuleNotFoundError: if `tensorflow-datasets` is not installed.
    """
    builder = open_prepared(name, data_dir)
    image_key, label_key = _image_and_label(name, builder, image_size)
    instruction = _resolve_split(name, split, builder)
    class_names = _class_names(builder.info.features[label_key])

    path = pathlib.Path(cache_dir).expanduser() if cache_dir else cache.default_dir()
    path = path / _cache_name(builder, instruction, image_size)
    arrays = cache.read(path)
    if arrays is None or set(arrays) != {"images", "labels"}:
        arrays = _read(builder, instruction, image_key, label_key, image_size, progress)
        cache.write(path, arrays)
    try:
        return Dataset(arrays["images"], arrays["labels"], class_names, name=name, split=split)
    except ValueError as error:
        raise ValueError(f"name={name!r}, split={split!r}: {error}") from error


def default_data_dir() -> pathlib.Path:
    """Returns the environment's TFDS_DATA_DIR or, where that is unset, TFDS's own default."""
    root = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return pathlib.Path(root).expanduser()


def open_prepared(
    name: str, data_dir: str | os.PathLike[str] | None = None
) -> tfds.core.DatasetBuilder:
    """Opens a prepared set through its files.

    Args:
      name: a TFDS name, as of `find`.
      data_dir: the folder to search; `default_data_dir()` by default.

    Returns:
      A builder that reads the array_record files, and that cannot prepare anything.

    Raises:
      ValueError: if the set is prepared in another format, and what `find` raises.
    """
    directory = find(name, data_dir)
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(directory)
    file_format = builder.info.file_format.value
    if file_format != "array_record":
        raise ValueError(
            f"name={name!r} is prepared as {file_format} in {str(directory)!r}, which cannot be "
            "read without TensorFlow: prepare it in another data_dir with "
            "file_format='array_record'."
        )
    return builder


def find(name: str, data_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Finds the folder of a prepared set, `data_dir/name[/config]/version`.

    Args:
      name: a TFDS name, `name[/config][:version]`; its newest version by default.
      data_dir: the folder to search; `default_data_dir()` by default.

    Returns:
      The folder with the set's `dataset_info.json`.

    Raises:
      NotPreparedError: if TFDS knows the set, but its files are not there.
      ValueError: if TFDS does not know the set either.
      ModuleNotFoundError: if `tensorflow-datasets` is not installed.
    """
    root = pathlib.Path(data_dir).expanduser() if data_dir else default_data_dir()
    root = root.absolute()
    tfds = _import_tfds(name)
    form = re.fullmatch(_NAME, name)
    base = form["base"] if form else ""
    if base and (root / base).is_dir():
        from tensorflow_datasets.core import read_only_builder

        try:
            builder = read_only_builder.builder_from_files(name, data_dir=str(root))
            return pathlib.Path(builder.data_dir)
        except tfds.core.DatasetNotFoundError:
            pass  # the folder is there without this configuration or version, or half prepared
    known = tfds.list_builders(with_community_datasets=False)
    if base in known:
        raise NotPreparedError(_not_prepared(name, base, root))
    raise ValueError(_unknown(name, known, root))


def prepared_names(data_dir: str | os.PathLike[str] | None = None) -> list[str]:
    """Returns the names of the sets that have a complete preparation in `data_dir`."""
    root = pathlib.Path(data_dir).expanduser() if data_dir else default_data_dir()
    # An `incomplete.*` folder is one that TFDS had not finished when it was stopped.
    files = [*root.glob("*/*/dataset_info.json"), *root.glob("*/*/*/dataset_info.json")]
    complete = [file for file in files if not file.parent.name.startswith("incomplete.")]
    return sorted({file.relative_to(root).parts[0] for file in complete})


def _import_tfds(name: str) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"name={name!r} is neither 'digits' nor 'npz:PATH', and other data sets are read with "
            f"tensorflow-datasets, which cannot be imported ({error}): "
            "run `pip install tensorflow-datasets array-record importlib_resources pillow`."
        ) from error
    return tfds


def _not_prepared(name: str, base: str, root: pathlib.Path) -> str:
    where = shlex.quote(str(root))
    if base in FROM_ARCHIVES:
        command = (
            f"python -m experiments.prepare_data --dataset={base} --archives=DIR --data_dir={where}"
        )
    else:  # made by the set's own builder, which needs TensorFlow and the network, once
        command = f"tfds build {name} --file_format=array_record --data_dir={where}"
    return f"name={name!r} is not prepared in data_dir={str(root)!r}: run `{command}`."


def _unknown(name: str, known: list[str], root: pathlib.Path) -> str:
    prepared = prepared_names(root)
    near = difflib.get_close_matches(name, ["digits", "npz:PATH", *prepared, *known], n=1)
    return (
        f"name={name!r} is not a known data set"
        + (f" (did you mean {near[0]!r}?)" if near else "")
        + f": accepted are 'digits', 'npz:PATH', what is prepared in data_dir={str(root)!r} "
        + f"({', '.join(prepared) or 'nothing'}) and, once prepared there, "
        + "the name of every TFDS image-classification set."
    )


def _image_and_label(
    name: str, builder: tfds.core.DatasetBuilder, image_size: int | None
) -> tuple[str, str]:
    """Returns the keys of the image and of the label in an example."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    keys = builder.info.supervised_keys
    if not (isinstance(keys, tuple) and len(keys) == 2 and all(isinstance(k, str) for k in keys)):
        keys = ("image", "label")
    found = [dict(features).get(key) for key in keys]
    if not (
        isinstance(found[0], tfds.features.Image) and isinstance(found[1], tfds.features.ClassLabel)
    ):
        raise ValueError(
            f"name={name!r} is not an image-classification set: accepted is one with an image and "
            f"a class label an example, and this one has {', '.join(sorted(features))}."
        )
    image = found[0]
    if image.np_dtype != np.uint8:
        raise ValueError(
            f"name={name!r} has {np.dtype(image.np_dtype)} images: accepted are uint8 ones (scale "
            "them and use 'npz:PATH')."
        )
    if image_size is None and None in image.shape:
        raise ValueError(
            f"name={name!r} has images of shape {image.shape}, of many sizes: pass image_size=..., "
            "to which their shorter side is scaled before they are cropped to a square."
        )
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size is {image_size}; at least 1 pixel is needed.")
    return keys


def _resolve_split(name: str, split: str, builder: tfds.core.DatasetBuilder) -> str:
    """Returns the TFDS expression a split stands for, after checking it."""
    own = list(builder.info.splits)
    renamed = _WITHOUT_VALIDATION if "validation" not in own and "train" in own else {}
    instruction = renamed.get(split, split)
    try:
        size = builder.info.splits[instruction].num_examples
        if size < 0:
            raise ValueError(f"{size} examples")
    except (KeyError, ValueError, AssertionError) as error:
        accepted = [f"{s} (its {renamed[s]})" if s in renamed else s for s in {*own, *renamed}]
        near = difflib.get_close_matches(split, {*own, *renamed}, n=1)
        raise ValueError(
            f"split={split!r} is not a split of {name!r}"
            + (f" (did you mean {near[0]!r}?)" if near else "")
            + f": accepted are {', '.join(sorted(accepted))} and TFDS's expressions over "
            + f"{', '.join(own)}, such as '{own[0]}[:1000]'."
        ) from error
    return instruction


def _class_names(label: tfds.features.ClassLabel) -> tuple[str, ...]:
    return tuple(label.names or (str(index) for index in range(label.num_classes)))


def _cache_name(builder: tfds.core.DatasetBuilder, instruction: str, image_size: int | None) -> str:
    full_name = builder.info.full_name  # name[/config]/version
    splits = builder.info.splits
    sizes = {key: [splits[key].num_bytes, splits[key].shard_lengths] for key in sorted(splits)}
    key = json.dumps([full_name, instruction, sizes, *([image_size] if image_size else [])])
    readable = re.sub(r"[^\w.-]+", "_", f"{full_name}-{instruction}".replace("/", "-"))[:150]
    return f"{readable}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.npz"


def _read(
    builder: tfds.core.DatasetBuilder,
    instruction: str,
    image_key: str,
    label_key: str,
    image_size: int | None,
    progress: Callable[[int, int], None],
) -> dict[str, np.ndarray]:
    source = builder.as_data_source(split=instruction)
    size = len(source)
    *area, channels = builder.info.features[image_key].shape
    area = [image_size, image_size] if image_size else area
    images = np.empty((size, *area, channels), np.uint8)
    labels = np.empty(size, np.int32)
    progress(0, size)
    for start in range(0, size, _CHUNK):
        stop = min(start + _CHUNK, size)
        for index, example in enumerate(source.__getitems__(range(start, stop)), start):
            image = example[image_key]
            images[index] = fitted(image, image_size) if image_size else image
            labels[index] = example[label_key]
        progress(stop, size)
    return {"images": images, "labels": labels}


def fitted(image: np.ndarray, size: int) -> np.ndarray:
    """An image `[H, W, C]` as `[size, size, C]`: its shorter side scaled, its middle kept."""
    from PIL import Image, ImageOps

    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    square = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(square).reshape(size, size, -1)
