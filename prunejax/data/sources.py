"""Which source a data set's name stands for."""

from __future__ import annotations

import os
from collections.abc import Callable

from prunejax.data import digits, npz, tfds_read
from prunejax.data.dataset import Dataset


def load(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Dataset:
    """Loads one split of a data set into memory; never uses the network.

    | name | what it is | splits |
    |---|---|---|
    | `digits` | 1,797 real 8x8 digits, bundled with scikit-learn | train, validation, test |
    | `npz:PATH` | arrays `{split}_images`, `{split}_labels` of a file | those in the file |
    | any TFDS name | an image-classification set that was prepared in `data_dir` | see below |

    Of TFDS's sets those are read whose images are uint8 and that were prepared as array_record
    files. Sets with images of many sizes, such as ImageNet, need `image_size`.

    `"train"`, `"validation"` and `"test"` are always disjoint. Where a TFDS set has no
    validation split of its own, `"train"` is the first 90 % of its training examples
    (`train[:90%]`) and `"validation"` the other 10 % (`train[90%:]`). Every other TFDS
    split expression is passed on unchanged, so `"train[:1000]"`, `"train+test"` and the
    whole of the training examples, `"train[:100%]"`, count from the set's own `train`.

    Args:
      name: `"digits"`, `"npz:PATH"`, or a TFDS name such as `"fashion_mnist"`, with
        configuration and version where wanted (`"imagenet_resized/32x32:0.1.0"`).
      split: the split, as above.
      data_dir: where TFDS sets were prepared; the environment variable TFDS_DATA_DIR or
        `~/tensorflow_datasets` by default. Unused by the other sources.
      cache_dir: where the arrays of TFDS sets are kept, for the next time; `prunejax/data`
        in XDG_CACHE_HOME or in `~/.cache` by default. Unused by the other sources.
      image_size: the images of a TFDS set are scaled so that their shorter side is that long, and
        cropped to a square around their middle; as they are by default.
      progress: called with (examples read, examples in all) while a TFDS set is read from its
        files, which takes seconds; never by the other sources.

    Returns:
      The examples in the order in which the source stores them.

    Raises:
      ValueError: for an unknown name or split, or content that a `Dataset` cannot hold.
      NotPreparedError: for a TFDS set that was not prepared in `data_dir`.
      FileNotFoundError: for an `npz:` file that does not exist.
      ModuleNotFoundError: where the source's optional package is not installed.
    """
    if image_size is not None and (name == "digits" or name.startswith("npz:")):
        raise ValueError(
            f"image_size is {image_size}; the images of {name!r} are used as they are."
        )
    if name == "digits":
        return digits.load(split)
    if name.startswith("npz:"):
        return npz.load(name.removeprefix("npz:"), split)
    return tfds_read.load(
        name, split,
        data_dir=data_dir, cache_dir=cache_dir, image_size=image_size, progress=progress,
    )  # fmt: skip
