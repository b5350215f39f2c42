"""Digits: blind adversarial pruning to 90 %.

    python -m experiments.train --config=experiments/configs/digits_blind.py --workdir=runs/digits_blind
    python -m experiments.evaluate --workdir=runs/digits_blind

Training takes about 21 s and the attacks 3 s, compilation included, on two cores of an AMD EPYC.
Comes out: 96.0 % clean and 62.0 % robust accuracy (Linf 0.1, PGD) on 200 test images, in
summary.json; the network in network/, every attacked example in records/.
"""

from experiments.configs.digits import digits


def get_config():
    return digits("blind", epochs=40, pruning_epochs=20, mask_frequency=18)
