"""Densities that a config leaves to a measurement."""

import json

import jax
import numpy as np
import pytest

from experiments import from_config, run_directory, sensitivity, train
from experiments.configs import digits_dense, digits_one_shot
from prunejax import data, masks, training, trees
from prunejax.training import checkpoints


def config_of(base=digits_one_shot):
    config = base.get_config()
    config.model.name = "mlp"
    config.model.options = {"widths": (16, 8)}
    config.validation.examples = 40
    config.validation.steps = 3
    return config


def test_each_layer_is_measured_alone_and_what_is_kept_adds_up(tmp_path, monkeypatch):
    digits = data.load("digits", "validation")
    before = config_of(digits_dense)
    network = from_config.build_network(before, digits)
    variables = network.init(jax.random.key(0), digits.image_shape)
    run_directory.open_run(tmp_path / "dense", before)
    kept = masks.dense(variables["params"])
    checkpoints.save_network(tmp_path / "dense" / "network", variables, kept)
    allocations = []

    def only_prune(network, start, phases, dataset, **options):
        allocations.append(json.loads((tmp_path / "pruned" / "sensitivity.json").read_text()))
        state = training.loop.begin(
            network, phases[0], start, None, (dataset.images[:0], dataset.labels[:0]), draw=(0, 0)
        )
        return training.loop.end(phases[0], state)

    monkeypatch.setattr(training, "train", only_prune)
    config = config_of()
    config.init_from = str(tmp_path / "dense")
    config.method.sparsity = 0.6
    config.method.allocation = "sensitivity"
    config.sensitivity.densities = (0.1, 0.3, 0.6)
    classifier = train.train(config, tmp_path / "pruned")

    (written,) = allocations
    sizes = {"Dense_0/kernel": 64 * 16, "Dense_1/kernel": 16 * 8, "Dense_2/kernel": 8 * 10}
    assert written["densities"].keys() == sizes.keys()
    for measured in written["robust_accuracy"].values():
        assert sorted(map(float, measured)) == [0.1, 0.3, 0.6, 1.0]
    total = sum(written["densities"][path] * size for path, size in sizes.items())
    assert total == pytest.approx(0.4 * sum(sizes.values()))
    for path, size in sizes.items():
        nonzero = np.count_nonzero(trees.flatten(classifier.params)[path])
        assert nonzero == size - round((1 - written["densities"][path]) * size)


def test_a_network_that_is_not_trained_has_nothing_to_measure(tmp_path):
    config = config_of()
    config.method.allocation = "sensitivity"
    with pytest.raises(ValueError, match=r"init_from is empty, and method\.allocation"):
        sensitivity.method_before(config)
