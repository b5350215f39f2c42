"""Folders of finished runs whose networks were never trained."""

import jax

from experiments import from_config, run_directory
from prunejax import data, masks
from prunejax.training import checkpoints


def write(folder, config, mask_of=masks.dense):
    """Writes what a run of digits leaves; its initial variables.

    `mask_of` makes the mask of its parameters, which are written as they are under it.
    """
    digits = data.load("digits", "test")
    network = from_config.build_network(config, digits)
    variables = network.init(jax.random.key(0), digits.image_shape)
    mask = mask_of(variables["params"])
    left = variables | {"params": masks.apply(variables["params"], mask)}
    run_directory.open_run(folder, config)
    checkpoints.save_network(folder / "network", left, mask)
    return left
