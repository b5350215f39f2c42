"""Digits: one-shot global magnitude pruning to 90 %, then adversarial fine-tuning.

    python -m experiments.train --config=experiments/configs/digits_one_shot.py --workdir=runs/digits_one_shot --config.init_from=runs/digits_dense
    python -m experiments.evaluate --workdir=runs/digits_one_shot

Training takes about 8 s and the attacks 4 s, compilation included, on two cores of an AMD EPYC.
Comes out: 96.5 % clean and 74.0 % robust accuracy (Linf 0.1, PGD) on 200 test images, in
summary.json; the network in network/, every attacked example in records/.
"""

from experiments.configs.digits import digits


def get_config():
    return digits("one_shot")
