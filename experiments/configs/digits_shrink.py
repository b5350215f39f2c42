"""Digits: a dense network made smaller, filters first, to half of its FLOPs.

    python -m experiments.train --config=experiments/configs/digits_dense.py --workdir=runs/dense
    python -m experiments.shrink --config=experiments/configs/digits_shrink.py \
        --workdir=runs/small --config.init_from=runs/dense
    python -m experiments.evaluate --workdir=runs/small
"""

from experiments.configs import digits_dense
from experiments.configs.base import shrinking


def get_config():
    config = digits_dense.get_config()
    config.method.epochs = 4
    config.shrinking = shrinking(share=0.15, at_most=0.5)
    return config
