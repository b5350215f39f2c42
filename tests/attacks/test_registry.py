"""What every attack of the registry takes, in every norm: any images and classes, and NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import attacks
from prunejax.classifier import Classifier
from tests.attacks.test_closed_form import assert_valid
from tests.attacks.test_invariances import REGISTRY, short
from tests.linear_models import random_linear

KEY = jax.random.key(0)
SHAPES = [((12,), 1000), ((5, 4), 1000), ((4, 3, 3), 2)]


@pytest.mark.parametrize(("shape", "classes"), SHAPES, ids=str)
@pytest.mark.parametrize(("name", "norm"), REGISTRY)
def test_images_of_any_shape_and_any_number_of_classes(
    name, norm, shape, classes, linear_classifier
):
    problem = random_linear(0, shape, classes, examples=4)
    attack, eps = short(name, norm)
    eps = None if eps is None else 4 * eps
    result = attacks.run(
        attack, linear_classifier(problem), problem.images, problem.labels, key=KEY, eps=eps
    )
    assert result.success.any()
    assert_valid(result, problem, problem.labels, norm, np.inf if eps is None else eps)


def _broken_beyond(_, images):
    """Class 1 where the mean is above a half; NaN where the first entry is above 0.6."""
    x = images.reshape(len(images), -1)
    score = x.mean(axis=1) - 0.5 + 0 * jnp.log(0.6 - x[:, 0])
    return jnp.stack([jnp.zeros_like(score), score], axis=1)


@pytest.mark.parametrize(("name", "norm"), REGISTRY)
def test_an_attack_that_gets_lost_in_nan_stops_no_other(name, norm):
    """The first entries of the last three images are 0.59, and go up."""
    images = np.full((6, 4, 3, 1), 0.49, np.float32)
    images[:3, 0, 0], images[3:, 0, 0] = 0.3, 0.59
    images += np.random.default_rng(0).uniform(-0.01, 0.01, images.shape).astype(np.float32)
    attack, eps = short(name, norm)
    some = Classifier(None, _broken_beyond), np.zeros(6, int)
    every, alone = (
        attacks.run(
            attack, some[0], images[:number], some[1][:number], key=KEY, eps=eps, batch_size=8
        )
        for number in (6, 3)
    )
    assert np.array_equal(every.images[:3], alone.images)
    assert np.array_equal(every.distance[:3], alone.distance)
    x = every.images.reshape(6, -1).astype(np.float64)
    assert np.all((x[:, 0] <= 0.6) & (x.mean(axis=1) > 0.5 - 1e-6) | ~every.success)
    assert np.isfinite(every.images).all()
