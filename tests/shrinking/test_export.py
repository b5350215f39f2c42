"""Exported networks: a process that knows nothing of this library computes the same logits."""

import subprocess
import sys

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from prunejax import Classifier, Network, masks, models, shrinking, trees
from prunejax.shrinking.export import export

# Reads the program and a batch of images, writes logits; JAX and NumPy are all it imports.
STRANGER = """
import pathlib, sys
import jax, jax.export, numpy as np
program = jax.export.deserialize(bytearray(pathlib.Path(sys.argv[1]).read_bytes()))
for images in sys.argv[2:]:
    np.save(images, program.call(np.load(images)))
foreign = {name.partition(".")[0] for name in sys.modules} & {"prunejax", "flax", "safetensors"}
assert not foreign, foreign
"""


def classifier(module, image_shape, mean=0.25, std=0.5):
    network = Network(module, mean, std)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), image_shape))
    variables = trees.map_with_path(
        lambda path, x: rng.uniform(0.5 if "var" in path else -0.5, 1, x.shape).astype(np.float32),
        shapes,
    )
    return Classifier(variables, network)


def logits_elsewhere(program, batches, folder):
    files = [folder / f"{number}.npy" for number in range(len(batches))]
    for file, images in zip(files, batches, strict=True):
        np.save(file, images)
    subprocess.run([sys.executable, "-c", STRANGER, program, *files], cwd=folder, check=True)
    return [np.load(file) for file in files]


def test_weights_are_stored_by_path_bit_for_bit(tmp_path):
    network = classifier(models.create("resnet8", 10, width=4), (8, 8, 3))
    found = load_file(export(network, (8, 8, 3), tmp_path / "network").weights)
    expected = trees.flatten(network.variables)
    assert found.keys() == expected.keys()
    assert "params/Conv_0/kernel" in found
    assert "batch_stats/BatchNorm_0/mean" in found
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path], leaf)


def test_keys_of_random_numbers_are_no_weights(tmp_path):
    variables = {"params": {"w": np.ones((3, 2), np.float32)}, "others": jax.random.key(0)}
    network = Classifier(variables, lambda variables, x: x @ variables["params"]["w"])
    files = export(network, (3,), tmp_path / "network", batch=2, platforms=("cpu",))
    assert list(load_file(files.weights)) == ["params/w"]


class Pairs(nn.Module):
    """Does something else where there are more than four images."""

    @nn.compact
    def __call__(self, x):
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(2)(x if x.shape[0] <= 4 else 2 * x)


def test_a_network_that_needs_a_number_of_images_is_told_to_give_one(tmp_path):
    network = classifier(Pairs(), (2, 2, 1))
    with pytest.raises(ValueError, match=r"batch='n'.* give one"):
        export(network, (2, 2, 1), tmp_path / "network", batch="n")
    assert not list(tmp_path.iterdir())
    program = export(network, (2, 2, 1), tmp_path / "network", batch=6).program
    images = np.random.default_rng(1).random((6, 2, 2, 1), np.float32)
    found = jax.export.deserialize(bytearray(program.read_bytes())).call(images)
    np.testing.assert_allclose(found, network(images), rtol=1e-5, atol=1e-6)


class Branches(nn.Module):
    """One of no known class: slices, indices, a residual sum, concatenation, a flattened map."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3), name="first")(x))[:, ::2, jnp.array([3, 0, 1])]
        x = nn.relu(x + nn.Conv(6, (1, 1), name="second")(x))
        x = jnp.concatenate([x, nn.Conv(4, (1, 1), name="third")(x)], axis=-1)
        x = nn.relu(nn.Dense(8, name="hidden")(x.reshape(x.shape[0], -1)))
        return nn.Dense(2, name="head")(x)


def smaller_branches():
    """Equations on fewer channels, and the network that computes the same under a mask."""
    shape = (4, 4, 1)
    whole = classifier(Branches(), shape)
    traced = shrinking.structure_of(whole.apply_fn, whole.variables, shape)
    mask = shrinking.channel_mask(traced, whole.variables, 0.5)
    small = shrinking.shrink(whole, mask, shape, check=False)
    assert isinstance(small.apply_fn, shrinking.Shrunk)
    kernels = {path: leaf["kernel"].shape for path, leaf in small.params.items()}
    assert kernels == {
        "first": (3, 3, 1, 3),
        "second": (1, 1, 3, 3),
        "third": (1, 1, 3, 2),
        "hidden": (2 * 3 * 5, 4),
        "head": (4, 2),
    }
    return shape, small, whole.with_params(masks.apply(whole.params, mask))


def resnet():
    whole = classifier(models.create("resnet8", 10, width=4), (8, 8, 3))
    return (8, 8, 3), whole, whole


@pytest.mark.parametrize(
    "make", [smaller_branches, pytest.param(resnet, marks=pytest.mark.exhaustive)]
)
def test_runs_without_this_library_on_any_number_of_images(make, tmp_path):
    shape, network, same = make()
    program = export(network, shape, tmp_path / "network", platforms=("cpu",)).program
    rng = np.random.default_rng(1)
    batches = [rng.random((number, *shape), np.float32) for number in (1, 5)]
    run = jax.jit(lambda images: same(images))
    found = logits_elsewhere(program, batches, tmp_path)
    for images, logits in zip(batches, found, strict=True):
        np.testing.assert_allclose(logits, run(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("batch", "shape", "named"),
    [(0, (8, 8, 3), "batch is 0"), ("b", (8, 8), "image_shape is")],
)
def test_what_cannot_be_exported_is_named(tmp_path, batch, shape, named):
    network = classifier(models.create("resnet8", 10, width=4), (8, 8, 3))
    with pytest.raises(ValueError, match=named):
        export(network, shape, tmp_path / "network", batch)
    assert not list(tmp_path.iterdir())


def test_a_dot_in_the_prefix_is_part_of_the_name(tmp_path):
    network = classifier(Pairs(), (2, 2, 1))
    files = export(network, (2, 2, 1), tmp_path / "width_0.25", batch=1, platforms=("cpu",))
    assert [file.name for file in files] == ["width_0.25.stablehlo", "width_0.25.safetensors"]
    assert all(file.is_file() for file in files)
