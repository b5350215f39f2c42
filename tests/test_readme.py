"""The README's Python examples do what it says."""

import contextlib
import io
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prunejax import attacks, masks, methods, pruning
from prunejax.attacks import catalogue

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


@pytest.fixture(scope="module")
def names():
    """What the examples take as given, and what they define."""

    class Linear(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(x.reshape(len(x), -1))

    class Convolutional(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(8, (3, 3))(x))
            return nn.Dense(2)(x.reshape(len(x), -1))

    kernel = np.zeros((4, 2), np.float32)
    kernel[:, 1] = 1.0
    attacked = {
        "module": Linear(),
        "variables": {"params": {"Dense_0": {"kernel": kernel, "bias": np.array([0.0, -0.2])}}},
        # Normalised to (x - 0.5) / 0.25; class 1 where the four entries sum to more than 0.2.
        "images": np.array([[[[0.5]] * 2] * 2, [[[0.525]] * 2] * 2], np.float32),
        "labels": np.array([0, 1]),
        "optax": optax,
    }
    image_shape = (6, 6, 1)
    shrunk = {
        "module": Convolutional(),
        "variables": Convolutional().init(jax.random.key(0), jnp.zeros((1, *image_shape))),
        "image_shape": image_shape,
    }
    names, printed = {}, io.StringIO()
    for example in re.findall(r"```python\n(.*?)```", README, re.S):
        names |= shrunk if "shrinking" in example else attacked
        with contextlib.redirect_stdout(printed):
            exec(example, names)
    return names | {"printed": printed.getvalue()}


def test_attack_example(names):
    # Both are 0.0125 a pixel from the boundary, less than 8 / 255.
    assert names["result"].success.all()
    assert (names["result"].distance >= 0.0125 - 1e-6).all()


def test_the_table_of_attacks_is_that_of_the_registry():
    assert catalogue.markdown(attacks.ATTACKS) in README


def test_shrinking_example(names):
    assert names["small"].params["Conv_0"]["kernel"].shape == (3, 3, 1, 4)
    for name, width in (("whole", 8), ("small", 4)):
        parameters = (9 + 1) * width + 36 * width * 2 + 2
        flops = 2 * 36 * (9 * width + width * 2)
        line = f"{name}: {parameters:,} parameters, {flops:,} FLOPs, [0-9.e-]+ s"
        assert re.search(line, names["printed"])


@pytest.mark.parametrize(
    "table",
    [
        pruning.CRITERIA,
        pruning.GRANULARITIES,
        pruning.ALLOCATIONS,
        pruning.SCHEDULES,
        methods.METHODS,
    ],
)
def test_all_choices_of_pruning_and_all_methods_are_named(table):
    for name in table:
        assert f"`{name}`" in README


def test_pruning_example(names):
    params = {"w": jnp.arange(1.0, 11.0).reshape(2, 5)}
    optimizer = names["optimizer"]
    state = optimizer.init(params)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (params, state), None, length=3_001)
    np.testing.assert_array_equal(params["w"], [[0, 0, 0, 0, 0], [0, 0, 0, 0, 10]])
    assert masks.density(params, pruning.mask_of(state)) == pytest.approx(0.1)
