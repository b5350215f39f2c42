"""Fashion-MNIST: gradual adversarial pruning to 90 % with a prescribed budget of 0.1 in Linf.

    python -m experiments.prepare_data --dataset=fashion_mnist \
        --archives=../shared/data/fashion_mnist --data_dir=~/tensorflow_datasets
    python -m experiments.train \
        --config=experiments/configs/fashion_mnist_gradual_adversarial.py --workdir=runs/fashion
    python -m experiments.evaluate --workdir=runs/fashion

The first line is only needed without a network. Measured with two epochs only
(--config.method.epochs=2 --config.method.pruning_epochs=1), on two busy cores of an AMD EPYC:
58 s of training, then 79.7 % clean and 58.5 % robust accuracy (Linf 0.1, PGD) on 1,000 test images.
"""

from experiments.configs.base import base, protocol

EPS = 0.1


def get_config():
    config = base(
        "fashion_mnist",
        "strided_cnn",
        "gradual_adversarial",
        eps=EPS,
        epochs=8,
        pruning_epochs=4,
        mask_frequency=100,
        attack_steps=7,
        learning_rate=2e-3,
    )
    config.validation.eps = EPS
    config.evaluation.protocols.linf_pgd = protocol(
        "pgd", (0.0, 0.025, 0.05, 0.1, 0.15), EPS, norm="linf", steps=40, restarts=2
    )
    config.evaluation.protocols.l2_deepfool = protocol("deepfool", (0.0, 0.5, 1.0, 1.5, 2.0), 1.0)
    config.evaluation.protocols.l0_sigma_zero = protocol(
        "sigma_zero", (0.0, 2.0, 5.0, 10.0, 20.0), 5.0, steps=300
    )
    return config
