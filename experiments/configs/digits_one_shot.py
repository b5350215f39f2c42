"""Digits: one-shot global magnitude pruning to 90 %, then adversarial fine-tuning.

    python -m experiments.train --config=experiments/configs/digits_one_shot.py --workdir=runs/digits_one_shot --config.init_from=runs/digits_dense
    python -m experiments.evaluate --workdir=runs/digits_one_shot

@TIME@
"""

from experiments.configs.digits import digits


def get_config():
    return digits("one_shot")
