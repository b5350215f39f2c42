"""What the digits experiments share: data, network, evaluation."""

from ml_collections import config_dict

from experiments.configs.base import base, protocol

EPS = 0.1


def digits(method: str, **method_options) -> config_dict.ConfigDict:
    """scikit-learn's 8x8 digits, a small strided CNN, budgets in Linf, L2 and L0."""
    config = base("digits", "strided_cnn", method, eps=EPS, learning_rate=3e-3, **method_options)
    config.batch_size = 64
    config.checkpoint_every = 10
    config.validation.eps = EPS
    config.validation.examples = 200
    config.evaluation.examples = 200
    config.evaluation.batch_size = 64
    config.evaluation.protocols = config_dict.ConfigDict(
        {
            "linf_pgd": protocol(
                "pgd", (0.0, 0.025, 0.05, 0.1, 0.15, 0.2), EPS, norm="linf", steps=40, restarts=3
            ),
            "l2_deepfool": protocol("deepfool", (0.0, 0.25, 0.5, 0.75, 1.0, 1.5), 0.5),
            "l0_sigma_zero": protocol("sigma_zero", (0.0, 1.0, 2.0, 3.0, 4.0, 6.0), 2.0, steps=200),
        }
    )
    return config
