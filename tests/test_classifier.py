"""A network and its variables as one pytree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from prunejax import Classifier, Network, models


def linear(variables, images):
    return images.reshape(len(images), -1) @ variables["params"]["w"]


def test_a_classifier_is_any_pure_function_with_its_variables():
    classifier = Classifier({"params": {"w": jnp.array([[1.0, 2.0], [3.0, 4.0]])}}, linear)
    images = jnp.array([[[1.0], [0.5]]])
    np.testing.assert_array_equal(classifier(images), [[2.5, 4.0]])
    np.testing.assert_array_equal(
        jax.jit(lambda c, x: c(x))(classifier, images), classifier(images)
    )


def test_its_leaves_are_its_variables():
    classifier = Classifier({"params": {"w": jnp.eye(2)}, "batch_stats": jnp.ones(3)}, linear)
    assert [leaf.shape for leaf in jax.tree.leaves(classifier)] == [(3,), (2, 2)]
    doubled = jax.tree.map(lambda x: 2 * x, classifier)
    np.testing.assert_array_equal(doubled(jnp.ones((1, 2))), [[2, 2]])


def test_a_stack_of_classifiers_is_vmapped():
    weights = jnp.arange(12.0).reshape(3, 2, 2)
    stack = Classifier({"params": {"w": weights}}, linear)
    images = jnp.array([[1.0, 2.0], [0.0, 1.0]])
    logits = jax.vmap(lambda c: c(images))(stack)
    np.testing.assert_array_equal(logits, np.einsum("bi,nij->nbj", images, weights))


def test_with_params_changes_the_parameters_alone():
    classifier = Classifier({"params": {"w": jnp.eye(2)}, "batch_stats": jnp.ones(3)}, linear)
    other = classifier.with_params({"w": 5 * jnp.eye(2)})
    np.testing.assert_array_equal(other.params["w"], 5 * np.eye(2))
    assert other.variables["batch_stats"] is classifier.variables["batch_stats"]
    np.testing.assert_array_equal(classifier.params["w"], np.eye(2))  # the old one is untouched


def test_equal_networks_share_one_program():
    traces = []

    class Spy(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            traces.append(self.width)
            return nn.Dense(self.width)(x)

    run = jax.jit(lambda c, x: c(x))
    image = jnp.ones((1, 2))
    variables = Network(Spy(3)).init(jax.random.key(0), (2,))
    traces.clear()
    for _ in range(2):
        run(Classifier(variables, Network(Spy(3), mean=0.5)), image)
    assert traces == [3]
    run(Classifier(variables, Network(Spy(3), mean=0.4)), image)
    assert traces == [3, 3]


@pytest.mark.parametrize("options", [{}, {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}])
def test_networks_are_hashed_by_value(options):
    one, same = (Network(models.create("resnet8", 4, width=2), **options) for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    assert one != Network(models.create("resnet8", 5, width=2), **options)


def test_the_mode_reaches_modules_that_take_it_and_no_others():
    class Mode(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool = False):
            return x + (100.0 if train else 0.0)

    class NoMode(nn.Module):
        @nn.compact
        def __call__(self, x):
            train = 1.0  # a local variable of that name is not an argument
            return x + train

    x = jnp.zeros((1, 2))
    np.testing.assert_array_equal(Network(Mode())({}, x), [[0, 0]])
    np.testing.assert_array_equal(Network(Mode()).train({}, x)[0], [[100, 100]])
    np.testing.assert_array_equal(Network(NoMode())({}, x), [[1, 1]])
    np.testing.assert_array_equal(Network(NoMode()).train({}, x)[0], [[1, 1]])


def test_dropout_draws_by_the_key_in_training_alone():
    class Dropping(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool = False):
            x = nn.Dropout(0.5, deterministic=not train)(x)
            noise = jax.random.uniform(self.make_rng("noise")) if train else 0.0
            return x, noise

    network, x = Network(Dropping()), jnp.ones((2, 50))
    np.testing.assert_array_equal(network({}, x)[0], x)
    (first, noise), _ = network.train({}, x, jax.random.key(0))
    assert set(np.unique(first)) == {0.0, 2.0}  # what is left is scaled up
    (same, same_noise), _ = network.train({}, x, jax.random.key(0))
    (other, other_noise), _ = network.train({}, x, jax.random.key(1))
    np.testing.assert_array_equal(same, first)
    assert np.any(np.asarray(other) != np.asarray(first))
    assert noise == same_noise != other_noise


def test_a_key_changes_nothing_where_nothing_is_drawn():
    network = Network(models.create("mlp", 2, widths=(3,)))
    variables, x = network.init(jax.random.key(0), (2,)), jnp.ones((3, 2))
    without, _ = network.train(variables, x)
    np.testing.assert_array_equal(network.train(variables, x, jax.random.key(5))[0], without)


def test_init_is_a_function_of_the_key():
    network = Network(models.create("mlp", 2, widths=()))
    first, same, other = (network.init(jax.random.key(k), (2, 2, 1)) for k in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, same)
    kernels = [v["params"]["Dense_0"]["kernel"] for v in (first, other)]
    assert kernels[0].shape == (4, 2)
    assert np.all(kernels[0] != kernels[1])
