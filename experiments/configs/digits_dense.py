"""Digits: adversarial training of a dense network.

    python -m experiments.train --config=experiments/configs/digits_dense.py --workdir=runs/digits_dense
    python -m experiments.evaluate --workdir=runs/digits_dense

@TIME@
"""

from experiments.configs.digits import digits


def get_config():
    return digits("dense")
