"""Handwritten digits, 8x8, that come with scikit-learn: real data without a download.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
Learning Repository, 1998 (its test part), as `sklearn.datasets.load_digits`.
"""

from __future__ import annotations

import difflib

import numpy as np

from prunejax.data.dataset import Dataset

_SEED = 20240607
_PER_CLASS = {"test": 40, "validation": 20}  # all other examples are for training
_SPLITS = ("train", "validation", "test")


def load(split: str) -> Dataset:
    """Loads a split of the 1,797 digits.

    1,197 examples are for training, 200 for validation and 400 for testing, with 20 and 40
    of each class in the last two. Examples are ordered with the classes taking turns, so the
    first n of a split are balanced too.

    Args:
      split: `"train"`, `"validation"` or `"test"`.

    Returns:
      uint8 images `[N, 8, 8, 1]`, `round(255 v / 16)` of the source's values v in 0..16.

    Raises:
      ValueError: for another split.
      ModuleNotFoundError: where scikit-learn is not installed.
    """
    if split not in _SPLITS:
        near = difflib.get_close_matches(split, _SPLITS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; use Dataset.take for fewer examples."
        raise ValueError(
            f"split={split!r} is not a split of 'digits': accepted are {', '.join(_SPLITS)}{hint}"
        )
    try:
        import sklearn.datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The data set 'digits' comes with scikit-learn, which is not installed: "
            "run `pip install scikit-learn`."
        ) from error

    bundle = sklearn.datasets.load_digits()
    indices = split_indices(bundle.target)[split]
    return Dataset(
        images=np.round(bundle.images[indices, ..., None] * (255 / 16)).astype(np.uint8),
        labels=bundle.target[indices].astype(np.int32),
        class_names=tuple(str(digit) for digit in range(10)),
        name="digits",
        split=split,
    )


def split_indices(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Divides examples into stratified splits, the same ones on every machine.

    Args:
      labels: integer `[N]`.

    Returns:
      For each split its example indices; together they are `0..N-1`, each once.
    """
    # The bit generator's stream is frozen by NumPy's compatibility policy (NEP 19), while
    # that of Generator.permutation is not.
    priority = np.random.PCG64(_SEED).random_raw(len(labels))
    shuffled = np.argsort(priority, kind="stable")
    rank = np.empty(len(labels), np.int64)  # an example's place among those of its class
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        rank[members] = np.arange(len(members))
    turns = np.lexsort((labels, rank))  # by rank, then by class

    splits, start = {}, 0
    for split, count in _PER_CLASS.items():
        splits[split] = turns[(rank[turns] >= start) & (rank[turns] < start + count)]
        start += count
    splits["train"] = turns[rank[turns] >= start]
    return splits
