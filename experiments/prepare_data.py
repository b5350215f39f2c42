r"""Prepares MNIST or Fashion-MNIST for TFDS from their archives, without network or TensorFlow.

For example:

    python -m experiments.prepare_data --dataset=fashion_mnist \
        --archives=../shared/data/fashion_mnist --data_dir=~/tensorflow_datasets

The archives are the set's four original files, train-images-idx3-ubyte.gz,
train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz. Their
SHA-256 must be the ones that TFDS registers. A set takes 25 to 45 MB of disk and less than a
minute; one that is already prepared is left as it is.
"""

import sys

from absl import app, flags

from prunejax.data import tfds_prepare, tfds_read

_DATASET = flags.DEFINE_enum(
    "dataset", None, list(tfds_read.FROM_ARCHIVES), "The data set to prepare.", required=True
)
_ARCHIVES = flags.DEFINE_string(
    "archives", None, "The folder with the data set's four *-ubyte.gz archives.", required=True
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "The folder to prepare the data set in, where prunejax.data.load and TFDS will look for it. "
    "The environment variable TFDS_DATA_DIR or ~/tensorflow_datasets by default.",
)


def main(argv: list[str]) -> None:
    """Prepares the set and says where it is."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}: flags begin with --")
    try:
        done = tfds_prepare.prepared_dir(_DATASET.value, _DATA_DIR.value)
        if done is not None:
            print(f"{_DATASET.value} is already prepared in {done}")
            return
        directory = tfds_prepare.prepare(_DATASET.value, _ARCHIVES.value, _DATA_DIR.value)
    except tfds_prepare.PrepareError as error:
        sys.exit(str(error))
    print(f"{_DATASET.value} is prepared in {directory}")


if __name__ == "__main__":
    app.run(main)
