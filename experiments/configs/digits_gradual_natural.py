"""Digits: gradual pruning to 90 % during natural training.

    python -m experiments.train --config=experiments/configs/digits_gradual_natural.py --workdir=runs/digits_gradual_natural
    python -m experiments.evaluate --workdir=runs/digits_gradual_natural

@TIME@
"""

from experiments.configs.digits import digits


def get_config():
    return digits("gradual_natural", epochs=40, pruning_epochs=20, mask_frequency=18)
