"""Digits: gradual pruning to 90 % with one prescribed budget.

    python -m experiments.train --config=experiments/configs/digits_gradual_adversarial.py --workdir=runs/digits_gradual_adversarial
    python -m experiments.evaluate --workdir=runs/digits_gradual_adversarial

@TIME@
"""

from experiments.configs.digits import digits


def get_config():
    return digits("gradual_adversarial", epochs=40, pruning_epochs=20, mask_frequency=18)
