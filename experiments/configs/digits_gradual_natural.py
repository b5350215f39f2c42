"""Digits: gradual pruning to 90 % during natural training.

    python -m experiments.train --config=experiments/configs/digits_gradual_natural.py --workdir=runs/digits_gradual_natural
    python -m experiments.evaluate --workdir=runs/digits_gradual_natural

Training takes about 4 s and the attacks 3 s, compilation included, on two cores of an AMD EPYC.
Comes out: 95.0 % clean and 43.5 % robust accuracy (Linf 0.1, PGD) on 200 test images, in
summary.json; the network in network/, every attacked example in records/.
"""

from experiments.configs.digits import digits


def get_config():
    return digits("gradual_natural", epochs=40, pruning_epochs=20, mask_frequency=18)
