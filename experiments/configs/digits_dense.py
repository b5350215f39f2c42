"""Digits: adversarial training of a dense network.

    python -m experiments.train --config=experiments/configs/digits_dense.py --workdir=runs/digits_dense
    python -m experiments.evaluate --workdir=runs/digits_dense

Training takes about 10 s and the attacks 5 s, compilation included, on two cores of an AMD EPYC.
Comes out: 98.0 % clean and 79.0 % robust accuracy (Linf 0.1, PGD) on 200 test images, in
summary.json; the network in network/, every attacked example in records/.
"""

from experiments.configs.digits import digits


def get_config():
    return digits("dense")
