"""A run's network as files: program and weights give the same logits, by hand."""

import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments import export
from experiments.configs import digits_dense
from prunejax import masks
from tests.experiments import untrained


def test_program_and_weights_are_the_pruned_networks(tmp_path):
    config = digits_dense.get_config()
    config.model.name = "mlp"
    config.model.mean, config.model.std = 0.25, 0.5
    config.model.options.widths = (5,)
    keep = jnp.arange(64)[:, None] % 4 == jnp.zeros((1, 5), int)

    def pruned(params):
        whole = masks.dense(params)
        return whole | {"Dense_0": whole["Dense_0"] | {"kernel": keep}}

    untrained.write(tmp_path / "run", config, pruned)
    files = export.export(tmp_path / "run", tmp_path / "new" / "network")
    weights = load_file(files.weights)
    np.testing.assert_array_equal(weights["params/Dense_0/kernel"] != 0, keep)
    program = jax.export.deserialize(bytearray(files.program.read_bytes()))
    for number in (1, 3):
        images = np.random.default_rng(number).random((number, 8, 8, 1), np.float32)
        x = (images.reshape(number, 64) - 0.25) / 0.5
        hidden = np.maximum(
            x @ weights["params/Dense_0/kernel"] + weights["params/Dense_0/bias"], 0
        )
        logits = hidden @ weights["params/Dense_1/kernel"] + weights["params/Dense_1/bias"]
        np.testing.assert_allclose(program.call(images), logits, rtol=1e-4, atol=1e-5)

    assert program.platforms == ("cpu", "cuda", "tpu")

    files = export.export(tmp_path / "run", tmp_path / "two", batch=2, platforms=["cpu"])
    program = jax.export.deserialize(bytearray(files.program.read_bytes()))
    assert program.in_avals[0].shape == (2, 8, 8, 1)
    assert program.platforms == ("cpu",)

    for wrong in ({"batch": 0}, {"platforms": ["gpu"]}):
        with pytest.raises(ValueError, match=r"batch is 0|Unknown platform 'gpu'"):
            export.export(tmp_path / "run", tmp_path / "not_made" / "network", **wrong)
    assert not (tmp_path / "not_made").exists()


def test_a_smaller_network_is_written_as_small_as_it_is(tmp_path):
    config = digits_dense.get_config()
    config.model.name = "mlp"
    config.model.options.widths = (5,)

    def of_columns(params):
        whole = masks.dense(params)
        left = jnp.array([[True, False, True, False, True]])
        return whole | {"Dense_0": whole["Dense_0"] | {"kernel": left}}

    variables = untrained.write_shrunk(tmp_path / "small", config, of_columns)
    files = export.export(tmp_path / "small", tmp_path / "network", batch=2)
    weights = load_file(files.weights)
    assert {path: leaf.shape for path, leaf in weights.items()} == {
        "params/Dense_0/kernel": (64, 3),
        "params/Dense_0/bias": (3,),
        "params/Dense_1/kernel": (3, 10),
        "params/Dense_1/bias": (10,),
    }
    first, last = (variables["params"][name]["kernel"] for name in ("Dense_0", "Dense_1"))
    np.testing.assert_array_equal(weights["params/Dense_0/kernel"], first)
    program = jax.export.deserialize(bytearray(files.program.read_bytes()))
    images = np.random.default_rng(0).random((2, 8, 8, 1), np.float32)
    logits = np.maximum(images.reshape(2, 64) @ first, 0) @ last  # biases begin at zero
    np.testing.assert_allclose(program.call(images), logits, rtol=1e-4, atol=1e-5)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        export.export(tmp_path, tmp_path / "network")
