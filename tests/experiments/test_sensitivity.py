"""Densities that a config leaves to a measurement."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import from_config, run_directory, sensitivity, train
from experiments.configs import digits_dense, digits_hydra, digits_one_shot
from prunejax import data, evaluation, masks, methods, training, trees
from prunejax.classifier import Classifier
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


def snip(params, digits):
    """|w g| of the mean cross-entropy on the first 32 training images, by hand."""
    images = jnp.asarray(digits.images[:32].reshape(32, 64), jnp.float32) / 255

    def loss(params):
        x = images
        for number in range(3):
            layer = params[f"Dense_{number}"]
            x = (jax.nn.relu(x) if number else x) @ layer["kernel"] + layer["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(x, digits.labels[:32]).mean()

    return jax.tree.map(lambda w, g: np.abs(w * g), params, jax.grad(loss)(params))


@pytest.mark.parametrize(
    ("base", "options", "score"),
    [
        pytest.param(
            digits_one_shot,
            {"criterion": "snip", "adversarial": False, "examples": 32},
            snip,
            marks=pytest.mark.exhaustive,
        ),
        (digits_hydra, {}, lambda params, digits: jax.tree.map(np.abs, params)),
    ],
    ids=["snip", "hydra"],
)
def test_layers_lose_what_the_method_s_criterion_ranks_lowest(
    tmp_path, monkeypatch, base, options, score
):
    config = config_of(base)
    config.init_from = "a run"
    config.method.update(allocation="sensitivity", sparsity=0.6, **options)
    config.sensitivity.densities = (0.25,)
    digits = data.load("digits", "train")
    network = from_config.build_network(config, digits)
    classifier = Classifier(network.init(jax.random.key(0), digits.image_shape), network)
    measured = []

    def accuracy_under(*args, **kwargs):
        return lambda params: measured.append(trees.flatten(params)) or len(measured)

    monkeypatch.setattr(evaluation, "accuracy_under", accuracy_under)
    sensitivity.densities(config, tmp_path, classifier, digits, digits)

    scores = trees.flatten(score(classifier.params, digits))
    dense, *pruned = measured
    paths = [f"Dense_{number}/kernel" for number in range(3)]
    for path, found in zip(paths, pruned, strict=True):
        left = found[path] != 0
        assert left.sum() == found[path].size / 4
        assert scores[path][left].min() >= (1 - 1e-4) * scores[path][~left].max() > 0
        for other in dense.keys() - {path}:
            np.testing.assert_array_equal(found[other], dense[other])


def test_criteria_of_data_see_all_examples_where_more_are_asked_for():
    config, digits = config_of(), data.load("digits", "train").take(5)
    network = from_config.build_network(config, digits)
    classifier = Classifier(network.init(jax.random.key(0), digits.image_shape), network)
    method = methods.create(**config.method)
    for asked, seen in ((3, 3), (5, 5), (6, 5)):
        found = from_config.evidence(classifier, method, digits, asked, seed=0)
        ((images, labels),) = found.batches
        np.testing.assert_array_equal(np.rint(images * 255), digits.images[:seen])
        np.testing.assert_array_equal(labels, digits.labels[:seen])


@pytest.mark.parametrize(
    ("init_from", "granularity", "sparsity", "densities", "message"),
    [
        ("", "weight", 0.5, (0.1,), r"init_from is empty, and method\.allocation"),
        ("a run", "2:4", 0.5, (0.25,), r"'2:4' gives all layers one density"),
        ("a run", "weight", 0.95, (0.1, 0.3), r"at most the density 0\.05 that method\.sparsity"),
        ("a run", "weight", 0.5, (0.0, 0.3), r"is \(0\.0, 0\.3\); some in \(0, 1\] are"),
        ("a run", "weight", 0.5, (0.1, 1.5), r"is \(0\.1, 1\.5\); some in \(0, 1\] are"),
        ("a run", "weight", 0.5, (0.1, float("nan")), r"is \(0\.1, nan\); some in \(0, 1\] are"),
        ("a run", "weight", 0.5, (), r"sensitivity\.densities is \(\)"),
    ],
)
def test_what_cannot_be_measured_or_used_is_refused_before_the_run(
    tmp_path, init_from, granularity, sparsity, densities, message
):
    config = config_of()
    config.init_from = init_from
    config.method.update(allocation="sensitivity", granularity=granularity, sparsity=sparsity)
    config.sensitivity.densities = densities
    with pytest.raises(ValueError, match=message):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
