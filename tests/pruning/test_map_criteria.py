"""Criteria that run the network on data inside a pruner: what they cannot score is named."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from prunejax import masks, models, shrinking
from prunejax.classifier import Classifier, Network
from prunejax.pruning import Evidence, Pruner, prune

OF_DATA = ("expected_abs", "hrank", "kl", "cka", "pls_vip")


def _normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def evidence_of(network, images):
    return Evidence(network=network, batches=((images, np.arange(len(images)) % 2),))


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("criterion", OF_DATA)
def test_layers_that_are_not_scored_are_not_the_first_to_go(criterion, allocation):
    params = {"first": _normal(1, 3), "last": _normal(3, 2)}
    network = lambda p, images: nn.relu(images @ p["first"]) @ p["last"]  # noqa: E731
    evidence = evidence_of(network, _normal(6, 1))
    options = {"granularity": "column", "allocation": allocation}
    with pytest.raises(ValueError, match=rf"{criterion!r} cannot score \['last'\]; exclude them"):
        prune(params, 0.5, Pruner(criterion, **options), evidence=evidence)
    if criterion == "expected_abs":
        pruner = Pruner(criterion, exclude="last", **options)
        mask = prune(params, 1 / 3, pruner, evidence=evidence)
        hidden = nn.relu(evidence.batches[0][0] @ params["first"]).mean(0)
        np.testing.assert_array_equal(mask["first"].ravel(), np.arange(3) != np.argmin(hidden))
        assert mask["last"].shape == ()


@pytest.mark.parametrize("batch", [_normal(6, 1), (_normal(6, 1),)])
def test_batches_without_labels_are_refused(batch):
    params = {"first": _normal(1, 3), "last": _normal(3, 2)}
    network = lambda p, images: nn.relu(images @ p["first"]) @ p["last"]  # noqa: E731
    evidence = Evidence(network=network, batches=(batch,))
    with pytest.raises(ValueError, match=r"criterion 'kl' needs evidence.batches of pairs"):
        prune(params, 0.5, Pruner("kl", "column", exclude="last"), evidence=evidence)


def test_layers_inside_of_a_loop_are_named_too():
    params = {"first": _normal(2, 3), "loop": _normal(4, 3, 3), "last": _normal(3, 2)}

    def network(p, images):
        x = nn.relu(images @ p["first"])
        x, _ = jax.lax.scan(lambda x, kernel: (nn.relu(x @ kernel), None), x, p["loop"])
        return x @ p["last"]

    evidence = evidence_of(network, _normal(6, 2))
    with pytest.raises(ValueError, match=r"cannot score \['last', 'loop'\]; exclude them"):
        prune(params, 0.5, Pruner("expected_abs"), evidence=evidence)


def test_a_smaller_network_takes_its_variables_as_the_whole_one_did():
    """Closed form: a smaller MLP's unit goes where its mean activation is least."""
    network = Network(models.create("mlp", num_classes=2, widths=(6,)))
    classifier = Classifier(network.init(jax.random.key(0), (4,)), network)
    left = masks.dense(classifier.params)
    left["Dense_0"]["kernel"] = np.array([[True, True, False, True, False, True]])
    small = shrinking.shrink(Classifier(classifier.variables, network.__call__), left, (4,))
    assert isinstance(small.apply_fn, shrinking.Shrunk)
    evidence = evidence_of(small.apply_fn, _normal(6, 4))
    pruner = Pruner("expected_abs", "column", exclude="Dense_1/*")
    mask = prune(small.params, 0.25, pruner, evidence=evidence)["Dense_0"]["kernel"]
    hidden = nn.relu(evidence.batches[0][0] @ small.params["Dense_0"]["kernel"]).mean(0)
    np.testing.assert_array_equal(mask.ravel(), np.arange(4) != np.argmin(hidden))
