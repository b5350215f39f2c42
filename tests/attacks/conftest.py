"""Networks that the tests of the attacks share, so that equal programs are compiled only once."""

import jax.numpy as jnp
import numpy as np
import pytest

from prunejax.classifier import Classifier


def _linear_logits(variables, images):
    return images.reshape(len(images), -1) @ variables["W"].T + variables["b"]


def _linear_classifier(problem) -> Classifier:
    return Classifier({"W": problem.weights, "b": problem.bias}, _linear_logits)


def _relu_logits(variables, images):
    hidden = jnp.maximum(images.reshape(len(images), -1) @ variables["V"] + variables["a"], 0)
    return hidden @ variables["W"] + variables["b"]


class ReluNetwork:
    """One hidden layer of random weights: as a classifier, and again in numpy and float64."""

    shape, classes = (6, 5, 1), 4

    def __init__(self, seed: int):
        rng = np.random.default_rng(seed)
        features, hidden = int(np.prod(self.shape)), 16
        V = 3 * rng.normal(size=(features, hidden)) / np.sqrt(features)
        W = 3 * rng.normal(size=(hidden, self.classes)) / np.sqrt(hidden)
        a, b = -V.sum(axis=0) / 2, 0.1 * rng.normal(size=self.classes)  # kinks mid-box
        arrays = {"V": V, "a": a, "W": W, "b": b}
        self.variables = {key: array.astype(np.float32) for key, array in arrays.items()}
        self.classifier = Classifier(self.variables, _relu_logits)

    def logits(self, images: np.ndarray) -> np.ndarray:
        V, a, W, b = (self.variables[key].astype(np.float64) for key in "VaWb")
        flat = images.reshape(len(images), -1).astype(np.float64)
        return np.maximum(flat @ V + a, 0) @ W + b

    def examples(self, number: int, wrong: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Images and the classes predicted for them, the last `wrong` labels are others."""
        rng = np.random.default_rng(1)
        images = rng.uniform(size=(number, *self.shape)).astype(np.float32)
        labels = self.logits(images).argmax(axis=1)
        labels[number - wrong :] = (labels[number - wrong :] + 1) % self.classes
        return images, labels


@pytest.fixture(scope="session")
def linear_classifier():
    """Function from a `LinearProblem` to the classifier that computes it."""
    return _linear_classifier


@pytest.fixture(scope="session")
def relu_network() -> ReluNetwork:
    return ReluNetwork(seed=0)


@pytest.fixture(scope="session")
def other_relu_network() -> ReluNetwork:
    return ReluNetwork(seed=1)
