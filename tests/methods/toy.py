"""A toy that all methods prune in a moment."""

import functools

import jax
import numpy as np

from prunejax import Network, masks, models, trees
from prunejax.data import Dataset
from prunejax.training import Trained, train

NETWORK = Network(models.create("mlp", 3, widths=[7]))
WEIGHTS = ("Dense_0/kernel", "Dense_1/kernel")
SIZES = (4 * 4 * 7, 7 * 3)
STEPS = 4  # 64 examples in batches of 16


@functools.cache
def toy():
    """Three classes that differ in brightness, and a dense network to start from."""
    rng = np.random.default_rng(0)
    labels = np.arange(64) % 3
    images = rng.integers(0, 80, (64, 4, 4, 1)) + 80 * labels[:, None, None, None]
    dataset = Dataset(images.astype(np.uint8), labels, ("dark", "grey", "light"), "toy", "train")
    variables = NETWORK.init(jax.random.key(0), (4, 4, 1))
    return dataset, Trained(variables, masks.dense(variables["params"]))


def run_phases(phases, *, network=NETWORK, start=None, **options):
    dataset, own_start = toy()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    start = start or own_start
    return train(network, start, phases, dataset, batch_size=16, mesh=mesh, **options)


def run(method):
    rows = []
    return run_phases(method.phases(STEPS), log=rows.append), rows


def removed(trained):
    return [int((~np.asarray(trees.flatten(trained.mask)[path])).sum()) for path in WEIGHTS]


def assert_pruned_exactly(trained):
    """The weights that the mask removes are zero, and no others."""
    mask = trees.flatten(trained.mask)
    for path, leaf in trees.flatten(trained.variables["params"]).items():
        if path in WEIGHTS:  # a bias is zero where its unit is dead
            keep = np.broadcast_to(mask[path], leaf.shape)
            np.testing.assert_array_equal(np.asarray(leaf) == 0, ~keep)
