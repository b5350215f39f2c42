"""Folders of finished runs whose networks were never trained."""

import jax

from experiments import from_config, run_directory
from prunejax import data, masks, shrinking
from prunejax.classifier import Classifier
from prunejax.training import checkpoints


def write(folder, config, mask_of=masks.dense):
    """Writes what a run of digits leaves; its initial variables.

    `mask_of` makes the mask of its parameters, which are written as they are under it.
    """
    _, variables = _initial(config)
    mask = mask_of(variables["params"])
    left = variables | {"params": masks.apply(variables["params"], mask)}
    run_directory.open_run(folder, config)
    checkpoints.save_network(folder / "network", left, mask)
    return left


def write_shrunk(folder, config, mask_of):
    """Likewise what experiments.shrink leaves, without the channels that the mask removes."""
    network, variables = _initial(config)
    whole = Classifier(variables, shrinking.whole(network, variables))
    small = shrinking.shrink(whole, mask_of(variables["params"]), (8, 8, 1), carry=True)
    run_directory.open_run(folder, config)
    from_config.save_shrunk(folder, small, masks.dense(small.params))
    return small.variables


def _initial(config):
    digits = data.load("digits", "test")
    network = from_config.build_network(config, digits)
    return network, network.init(jax.random.key(0), digits.image_shape)
