"""Digits: HYDRA at 90 %: scores learned by adversarial training, then adversarial fine-tuning.

python -m experiments.train --config=experiments/configs/digits_hydra.py --workdir=runs/digits_hydra --config.init_from=runs/digits_dense
python -m experiments.evaluate --workdir=runs/digits_hydra
"""

from experiments.configs.digits import digits


def get_config():
    return digits("hydra", epochs=30, score_epochs=15)
