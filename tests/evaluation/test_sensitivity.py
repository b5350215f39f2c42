"""Robust accuracy of pruned layers, where the distance to the boundary is known exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import attacks, masks
from prunejax.classifier import Classifier
from prunejax.evaluation import accuracy_under
from prunejax.pruning import Pruner, prune, sensitivity
from tests.linear_models import minimum_distance, random_linear

DENSITIES, EPS = (0.25, 0.5, 0.75), 0.05
PROBLEM = random_linear(1, (3, 4), classes=2, examples=30)
FGSM = attacks.FGSM(norm="linf")  # one step is all that a linear model with two classes takes
TARGETED = attacks.FGSM(norm="linf", targeted=True)


def apply_fn(variables, images):
    """Logits W x + b, and the same number on top of both."""
    params = variables["params"]
    x = images.reshape(len(images), -1)
    return x @ params["vital"] + variables["bias"] + (x @ params["useless"]).sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def classifier():
    useless = jax.random.normal(jax.random.key(1), (12, 2))
    params = {"useless": useless, "vital": jnp.asarray(PROBLEM.weights.T)}
    return Classifier({"params": params, "bias": jnp.asarray(PROBLEM.bias)}, apply_fn)


def kept(weights, density):
    """W with the smallest weights gone."""
    order = np.argsort(np.abs(weights), axis=None, kind="stable")
    weights = weights.copy()
    weights.ravel()[order[: round((1 - density) * weights.size)]] = 0
    return weights


def exact(weights, eps):
    """Share of the images whose label no point within eps in Linf takes."""
    distances = [
        minimum_distance(weights.T, PROBLEM.bias, x, y, "linf")
        for x, y in zip(PROBLEM.images, PROBLEM.labels, strict=True)
    ]
    return np.mean(np.array(distances) > eps)


def accuracy_of(classifier, attack=FGSM, eps=EPS, **options):
    options = {"images": PROBLEM.images, "labels": PROBLEM.labels} | options
    return accuracy_under(
        attack, classifier, options["images"], options["labels"],
        eps=eps, key=jax.random.key(0), batch_size=16,
    )  # fmt: skip


def test_robust_sensitivity_is_exact_on_a_linear_model(classifier):
    table = sensitivity.measure(
        classifier.params, Pruner(), DENSITIES, accuracy_of(classifier, eps=EPS)
    )
    weights = np.asarray(classifier.params["vital"])
    by_hand = {d: exact(kept(weights, d), EPS) for d in (*DENSITIES, 1.0)}
    assert table["vital"] == pytest.approx(by_hand)
    assert len(set(by_hand.values())) == 4, "pruning makes a difference"
    assert table["useless"] == dict.fromkeys((*DENSITIES, 1.0), by_hand[1.0])


def test_it_is_what_attacks_run_says(classifier):
    mask = prune(classifier.params, 0.5, Pruner(include=("vital",)))
    params = masks.apply(classifier.params, mask)
    for attack in (FGSM, attacks.DeepFool(norm="linf", steps=5)):
        run = attacks.run(
            attack,
            classifier.with_params(params),
            PROBLEM.images,
            PROBLEM.labels,
            eps=None if attack.minimum_norm else EPS,
            key=jax.random.key(0),
            batch_size=16,
        )
        left = accuracy_of(classifier, attack)(params)
        fallen = run.distance <= EPS if attack.minimum_norm else run.success
        assert left == pytest.approx(np.mean(~fallen))
        assert left == pytest.approx(exact(np.asarray(params["vital"]), EPS))


def test_densities_of_equal_robust_accuracy_are_more_robust_than_equal_densities(classifier):
    accuracy, params = accuracy_of(classifier), classifier.params
    table = sensitivity.measure(params, Pruner(), DENSITIES, accuracy)
    units = {path: layer.units for path, layer in Pruner().layers(params).items()}
    allocation = sensitivity.densities(table, units, 0.625)
    assert allocation["useless"] == pytest.approx(0.25)
    assert allocation["vital"] == pytest.approx(1.0)
    protected, uniform = (
        accuracy(masks.apply(params, prune(params, 0.375, Pruner(allocation=allocation))))
        for allocation in (allocation, "uniform")
    )
    assert protected == accuracy(params) > uniform


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": PROBLEM.images[:0]}, "images is empty"),
        ({"labels": PROBLEM.labels[:3]}, "labels has 3 entries for 30 images"),
        ({"eps": -0.1}, r"eps is -0\.1"),
        ({"eps": np.inf}, "eps is inf; it must lie in"),
        ({"eps": np.nan}, "eps is nan; it must lie in"),
        ({"eps": "a"}, "eps is 'a'; it must lie in"),
        ({"attack": TARGETED}, "attack is targeted"),
        (
            {"attack": attacks.Cascade(norm="linf", members=(("fgsm", TARGETED),))},
            "attack is targeted",
        ),
    ],
)
def test_bad_input_is_refused_at_once(classifier, options, message):
    with pytest.raises(ValueError, match=message):
        accuracy_of(classifier, **options)
