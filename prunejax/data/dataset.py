"""The one type every data source returns."""

from __future__ import annotations

import dataclasses
import operator

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)  # eq=False: `==` of arrays has no single truth value
class Dataset:
    """Labelled images of one split, held in host memory.

    Attributes:
      images: uint8 `[N, H, W, C]`, pixel values 0 to 255.
      labels: int32 `[N]`, in `[0, num_classes)`; other integer types are converted.
      class_names: one name a class, in the order of the labels.
      name: the name it was loaded by, such as `"digits"`.
      split: the split it was loaded from, such as `"train"`.

    Raises:
      ValueError: where the arrays do not have these types, shapes or ranges.
    """

    images: np.ndarray = dataclasses.field(repr=False)
    labels: np.ndarray = dataclasses.field(repr=False)
    class_names: tuple[str, ...]
    name: str
    split: str

    def __post_init__(self) -> None:
        images, labels = np.asarray(self.images), np.asarray(self.labels)
        class_names = tuple(map(str, self.class_names))
        _check_images(images)
        _check_labels(labels, len(images), len(class_names))
        # A frozen dataclass is assigned to through object.
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", labels.astype(np.int32, copy=False))
        object.__setattr__(self, "class_names", class_names)

    def __len__(self) -> int:
        """The number of examples, N."""
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """The number of classes, also of those without an example in this split."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return self.images.shape[1:]

    def take(self, n: int) -> Dataset:
        """Returns the first `n` examples.

        Args:
          n: how many, 0 to `len(self)`.

        Raises:
          ValueError: if `n` is outside that range.
        """
        n = operator.index(n)
        if not 0 <= n <= len(self):
            raise ValueError(
                f"n={n} examples cannot be taken from {self.name!r} split {self.split!r}: "
                f"accepted are 0 to {len(self)}."
            )
        return dataclasses.replace(self, images=self.images[:n], labels=self.labels[:n])


def _check_images(images: np.ndarray) -> None:
    if images.dtype != np.uint8:
        raise ValueError(
            f"images has dtype {images.dtype}: accepted is uint8 with pixel values 0 to 255."
        )
    if images.ndim != 4:
        raise ValueError(f"images has shape {images.shape}: accepted is rank 4, [N, H, W, C].")


def _check_labels(labels: np.ndarray, num_images: int, num_classes: int) -> None:
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels has dtype {labels.dtype}: accepted is an integer type (int32).")
    if labels.shape != (num_images,):
        raise ValueError(
            f"labels has shape {labels.shape}: accepted is ({num_images},), one label an image."
        )
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if outside.size:
        raise ValueError(
            f"labels holds {outside[0]}: accepted are 0 to {num_classes - 1}, "
            f"since class_names has {num_classes} entries."
        )
