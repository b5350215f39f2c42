"""Digits: adversarial RigL, 90 % sparse from the first step on.

    python -m experiments.train --config=experiments/configs/digits_regrowing.py --workdir=runs/digits_regrowing
    python -m experiments.evaluate --workdir=runs/digits_regrowing

The commands take about 32 s and 16 s on two cores of an AMD EPYC, ten more where no attack is
compiled yet. Comes out: 95.0 % clean and 61.5 % robust accuracy (Linf 0.1, PGD) on 200 test images,
at density 0.1000, in summary.json; the network in network/, every attacked example in records/.
"""

from experiments.configs.digits import digits


def get_config():
    return digits("regrowing", epochs=40, regrowing_epochs=30, mask_frequency=18)
