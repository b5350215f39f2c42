"""foolbox attacks our classifiers through its own JAX wrapper, and its results bracket ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import attacks
from tests.linear_models import minimum_distances, random_linear

foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed (extra `peers`)")
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def model(linear_classifier):
    problem = random_linear(0, (7, 5, 1), classes=2)
    classifier = linear_classifier(problem)
    wrapped = foolbox.models.JAXModel(classifier, bounds=(0, 1))
    return problem, classifier, wrapped, jnp.asarray(problem.images), jnp.asarray(problem.labels)


def test_minimum_distances_are_between_the_optimum_and_foolboxs(model):
    problem, classifier, wrapped, images, labels = model
    exact = minimum_distances(problem, "l2")
    _, theirs, found = foolbox.attacks.L2DeepFoolAttack(steps=50)(
        wrapped, images, labels, epsilons=None
    )
    theirs = np.linalg.norm((np.asarray(theirs) - problem.images).reshape(8, -1), axis=1)
    theirs = np.where(np.asarray(found), theirs, np.inf)
    ours = attacks.run(attacks.DeepFool(), classifier, problem.images, problem.labels, key=KEY)
    assert np.all(exact * (1 - 1e-5) <= ours.distance)
    assert np.all(ours.distance <= theirs * 1.02)


def test_pgd_succeeds_where_foolboxs_does(model):
    problem, classifier, wrapped, images, labels = model
    exact = minimum_distances(problem, "linf")
    for eps in (0.9 * np.median(exact), 1.2 * np.median(exact)):
        *_, theirs = foolbox.attacks.LinfPGD(steps=40)(wrapped, images, labels, epsilons=eps)
        ours = attacks.run(
            attacks.PGD(steps=40), classifier, problem.images, problem.labels, key=KEY, eps=eps
        ).success
        assert np.all(np.asarray(theirs) <= ours)
        assert np.array_equal(ours, exact < eps)
