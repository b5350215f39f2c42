"""CIFAR-10's first 4,000 training and 1,000 test images: a network, made smaller afterwards.

    python -m experiments.benchmarks.shrinking_accuracy --workdir=runs/shrinking

trains and shrinks the two networks of it, in about 20 minutes on two cores of an AMD EPYC. Comes
out: a narrow VGG-11 with 45.8 % clean and 33.2 % robust accuracy (Linf 2/255, PGD) before and 45.8 %
and 32.8 % after, 2.7 x faster; a ResNet-8 with 41.6 % and 31.2 % before, 43.4 % and 32.4 % after,
1.1 x faster. A subset: its accuracies are not those of CIFAR-10.
"""

from ml_collections import config_dict

from experiments.configs.base import base, protocol, shrinking

EPS = 2 / 255


def cifar10_subset(path: str, model: str, **options) -> config_dict.ConfigDict:
    """Adversarial training in Linf, then rounds of shrinking to half of the FLOPs.

    Args:
      path: of the .npz file.
      model: name of the network.
      **options: of the network.
    """
    config = base(
        f"npz:{path}", model, "dense",
        eps=EPS, attack_steps=3, relative_step=0.5, epochs=6, learning_rate=2e-3,
    )  # fmt: skip
    config.dataset.flip = True
    config.dataset.shift = 2
    config.model.mean, config.model.std = 0.47, 0.25
    config.model.options = config_dict.ConfigDict(options)
    config.batch_size = 64
    config.checkpoint_every = 4
    config.validation.eps = EPS
    config.validation.steps = 5
    config.validation.examples = 200
    config.evaluation.examples = 500
    config.evaluation.protocols.linf_pgd = protocol(
        "pgd", (0.0, 1 / 255, EPS, 4 / 255), EPS, norm="linf", steps=20
    )
    config.shrinking = shrinking(share=0.16, at_most=0.5, allocation="uniform")
    return config
