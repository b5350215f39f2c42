"""Costs are those of what is there: numbers, bytes, memory, and seconds by the clock."""

import itertools
import types

import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import masks, models, pruning, trees
from prunejax.classifier import Classifier
from prunejax.evaluation import efficiency, work
from prunejax.training import checkpoints
from tests.evaluation.test_work import classifier_of


def test_a_mask_saves_effective_work_only():
    classifier = classifier_of(
        models.create("lenet5", num_classes=10, widths=(4, 6, 10)), (12, 12, 1)
    )
    mask = pruning.prune(classifier.params, 0.75, pruning.Pruner(exclude=("Conv_0/kernel",)))
    whole = efficiency.efficiency(classifier, (12, 12, 1), batch_size=2, repeats=1)
    pruned = efficiency.efficiency(classifier, (12, 12, 1), mask, batch_size=2, repeats=1)

    assert pruned.flops == whole.flops == whole.effective_flops
    kept = masks.kept(classifier.params, mask)
    positions = {
        "Conv_0/kernel": 144,
        "Conv_1/kernel": 36,
        "Dense_0/kernel": 1,
        "Dense_1/kernel": 1,
    }
    assert pruned.effective_flops == sum(2 * n * kept[path] for path, n in positions.items())
    weights = [path for path in kept if path.endswith("kernel")]
    sizes = {path: np.size(leaf) for path, leaf in trees.flatten(classifier.params).items()}
    assert pruned.density == sum(kept[p] for p in weights) / sum(sizes[p] for p in weights)
    covered = [path for path in weights if path != "Conv_0/kernel"]
    assert pruned.nominal_density == sum(kept[p] for p in covered) / sum(sizes[p] for p in covered)
    assert pruned.nominal_densities == {path: kept[path] / sizes[path] for path in covered}
    assert (whole.nominal_density, whole.nominal_densities) == (1, {})
    assert pruned.nonzero == sum(kept[p] for p in weights)  # biases begin at zero
    assert pruned.parameters == whole.parameters == sum(sizes.values())
    assert pruned.throughput == 2 / pruned.latency


def test_memory_is_that_of_weights_images_and_what_is_between():
    layers, batch = (500, 400, 300, 10), 7
    classifier = classifier_of(models.create("mlp", 10, widths=layers[1:-1]), (layers[0],))
    weights = sum((n + 1) * m for n, m in itertools.pairwise(layers))
    found = efficiency.efficiency(classifier, (layers[0],), batch_size=batch, repeats=1)
    least = 4 * (weights + batch * (layers[0] + layers[-1]))
    # Between are at most the normalised images and the layers' outputs, before and after ReLU.
    assert least <= found.peak_memory <= least + 4 * 2 * batch * sum(layers) + 1024


def test_latency_is_the_fastest_of_several_batches_from_their_start_to_their_end(monkeypatch):
    """By a clock that says 5, 2 and 4 seconds, of which compiling and the first batch are none."""
    events, ticks = [], iter([0, 5, 10, 12, 20, 24])

    class Program:
        def __call__(self, classifier, images):
            assert images.shape == (6, 4)
            events.append("started")
            return self

        def block_until_ready(self):
            events.append("ended")

        def memory_analysis(self):
            names = ("argument", "output", "temp")
            return types.SimpleNamespace(**{f"{name}_size_in_bytes": 0 for name in names})

    def compiled(*args):
        events.append("compiled")
        return Program()

    def clock():
        events.append("looked at the clock")
        return next(ticks)

    monkeypatch.setattr(efficiency, "_compiled", compiled)
    monkeypatch.setattr(efficiency, "time", types.SimpleNamespace(perf_counter=clock))
    classifier = Classifier({"params": {"w": np.ones((4, 2))}}, lambda v, x: x @ v["params"]["w"])
    found = efficiency.efficiency(classifier, (4,), batch_size=6, repeats=3)
    one = ["looked at the clock", "started", "ended", "looked at the clock"]
    assert events == ["compiled", "started", "ended", *3 * one]
    assert (found.latency, found.throughput) == (2, 3)


def test_a_network_without_weights_costs_nothing_but_its_parameters():
    variables = {"params": {"scale": np.array([1.0, 0.0], np.float32)}}
    scaled = Classifier(variables, lambda variables, x: x * variables["params"]["scale"])
    found = efficiency.efficiency(scaled, (2,), batch_size=1, repeats=1)
    assert (found.layers, found.parameters, found.nonzero) == ((), 2, 1)
    assert (found.flops, found.density, found.nominal_density) == (0, 1, 1)


def test_bytes_on_disk_are_those_of_the_network_that_is_saved(tmp_path):
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(8, 4)).astype(np.float32)}
    variables = {"params": params, "statistics": {"mean": np.zeros(8, np.float32)}}
    network = Classifier(variables, lambda v, x: (x - v["statistics"]["mean"]) @ v["params"]["w"])
    mask = pruning.prune(params, 0.75)
    checkpoints.save_network(tmp_path / "network", variables, mask)
    (file,) = (tmp_path / "network").iterdir()
    cost = efficiency.efficiency(network, (8,), mask, batch_size=1, repeats=1)
    assert cost.bytes_on_disk == file.stat().st_size


@pytest.mark.parametrize("cost", [work.count, efficiency.efficiency])
def test_variables_without_parameters_are_named(cost):
    with pytest.raises(ValueError, match="variables have no entry 'params'"):
        cost(Classifier({"w": np.ones((2, 2))}, lambda variables, x: x @ variables["w"]), (2,))


def test_bad_arguments_are_refused():
    classifier = classifier_of(models.create("mlp", num_classes=3, widths=(4,)), (5,))
    with pytest.raises(ValueError, match=r"image_shape is \(9,\), and the network does not take"):
        work.count(classifier, (9,))
    with pytest.raises(ValueError, match="batch_size is 0"):
        efficiency.efficiency(classifier, (5,), batch_size=0)
    with pytest.raises(ValueError, match="different leaves"):
        efficiency.efficiency(classifier, (5,), {"Dense_0": jnp.array(True)})
