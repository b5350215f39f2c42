"""Digits: blind adversarial pruning to 90 %.

    python -m experiments.train --config=experiments/configs/digits_blind.py --workdir=runs/digits_blind
    python -m experiments.evaluate --workdir=runs/digits_blind

@TIME@
"""

from experiments.configs.digits import digits


def get_config():
    return digits("blind", epochs=40, pruning_epochs=20, mask_frequency=18)
