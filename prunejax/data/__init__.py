"""Labelled images from scikit-learn's digits, TensorFlow Datasets and plain .npz files.

`load` reads a split of a data set into a `Dataset`, all of it in memory: ::

    from prunejax import data

    train = data.load("digits", "train")
    test = data.load("fashion_mnist", "test", data_dir="~/tensorflow_datasets")
    mine = data.load("npz:~/mine.npz", "train")

`prunejax.data.augment` holds the random shifts and flips of training, and
`prunejax.data.tfds_prepare` makes MNIST and Fashion-MNIST from their archives.
"""

from prunejax.data.dataset import Dataset
from prunejax.data.sources import load
from prunejax.data.tfds_read import NotPreparedError

__all__ = ["Dataset", "NotPreparedError", "load"]
