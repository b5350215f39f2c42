"""The loop: runs that were killed, several processes, divergence, the best network."""

import importlib.util
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from prunejax import masks, models, training
from prunejax.classifier import Network
from prunejax.training import Phase, Trained, checkpoints, objectives

TOY = pathlib.Path(__file__).parent / "toy.py"
_spec = importlib.util.spec_from_file_location("toy", TOY)
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)


@pytest.fixture(scope="module")
def undisturbed():
    return toy.run(None)


def _start(directory, *args):
    command = [sys.executable, str(TOY), str(directory), *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _assert_same(directory, expected):
    with np.load(directory / "result.npz") as found:
        assert set(found) == set(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.slow
def test_killed_between_and_during_saves_ends_bit_identical(tmp_path, undisturbed):
    for when in ("after-save", "mkdir", "rename"):
        process = _start(tmp_path, when)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL, output
        assert not (tmp_path / "result.npz").exists()
    process = _start(tmp_path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    _assert_same(tmp_path, undisturbed)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path, undisturbed):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [_start(tmp_path, f"--process={i},2,{port}") for i in range(2)]
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    with np.load(tmp_path / "result.npz") as found:
        for name, value in undisturbed.items():
            # The sum over two processes may round otherwise than that over two devices.
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_finished_run_is_found_again(tmp_path):
    first = toy.run(tmp_path)
    rows = []
    second = toy.run(tmp_path, log=rows.append)
    assert rows == []
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value)


def _network():
    network = Network(models.create("mlp", 3, widths=(4,)))
    variables = network.init(jax.random.key(0), (4, 4, 1))
    return network, Trained(variables, masks.dense(variables["params"]))


def _phase(tx, epochs, **options):
    return Phase(
        name="train",
        epochs=epochs,
        objective=objectives.natural(),
        optimizer=lambda mask: tx,
        **options,
    )


def test_divergence_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path):
    network, start = _network()
    # Finite for the first epoch's 4 steps; the sixth update is not a number.
    rate = lambda step: jax.numpy.where(step == 5, jax.numpy.nan, 1e-2)  # noqa: E731
    store = checkpoints.Store(tmp_path)
    with pytest.raises(training.DivergedError, match="nan at step 6"):
        training.train(
            network, start, [_phase(optax.sgd(rate), 3)], toy.dataset(), batch_size=16, store=store
        )
    store.close()
    again = checkpoints.Store(tmp_path)
    assert again.latest()[:2] == (0, 1)
    again.close()


def test_the_best_network_is_chosen_among_the_selectable(tmp_path):
    network, start = _network()
    values = [9.0, 1.0, 3.0, 2.0]
    seen = []

    def validate(classifier):
        seen.append(classifier.params)
        return {"value": values[len(seen) - 1]}

    best = training.train(
        network,
        start,
        [_phase(optax.sgd(0.1), 4, selectable_from=1)],
        toy.dataset(),
        batch_size=16,
        validate=validate,
        select="value",
    )
    for found, expected in zip(
        jax.tree.leaves(best.variables["params"]), jax.tree.leaves(seen[2]), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_one_step_is_the_optimizers_step_on_the_batch():
    network, start = _network()
    data = toy.dataset(16)
    trained = training.train(
        network, start, [_phase(optax.sgd(0.5), 1)], data, batch_size=16, seed=3
    )

    def loss(params):
        logits = network({"params": params}, data.images.astype(np.float32) / 255)
        return optax.softmax_cross_entropy_with_integer_labels(logits, data.labels).mean()

    params = start.variables["params"]
    grads = jax.grad(loss)(params)
    for found, before, grad in zip(
        jax.tree.leaves(trained.variables["params"]),
        jax.tree.leaves(params),
        jax.tree.leaves(grads),
        strict=True,
    ):
        np.testing.assert_allclose(found, before - 0.5 * grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [0, 65, 15])
def test_batch_sizes_that_cannot_be_are_refused(batch_size):
    network, start = _network()
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}"):
        training.train(
            network, start, [_phase(optax.sgd(0.1), 1)], toy.dataset(), batch_size=batch_size
        )


@pytest.fixture
def store_with_one(tmp_path):
    store = checkpoints.Store(tmp_path)
    tree = {"w": np.arange(50_000, dtype=np.float32)}
    store.save(1, checkpoints.Position(0, 1, 0.5), tree)
    yield store, tree
    store.close()


def _assert_first_is_readable(directory, tree):
    store = checkpoints.Store(directory)
    position = store.latest()
    assert position == checkpoints.Position(0, 1, 0.5, checkpoint=1)
    np.testing.assert_array_equal(store.restore(position, tree)["w"], tree["w"])
    store.close()


def test_a_full_disk_leaves_the_previous_checkpoint_readable(tmp_path, store_with_one):
    store, tree = store_with_one
    # A limit on the size of files: writing fails as on a full disk.
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(checkpoints.CheckpointError, match="Those before it are intact"):
            store.save(2, checkpoints.Position(0, 2, 0.6), {"w": tree["w"] + 0.1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    _assert_first_is_readable(tmp_path, tree)


def test_ctrl_c_during_a_save_leaves_the_previous_checkpoint_readable(
    tmp_path, store_with_one, monkeypatch
):
    store, tree = store_with_one

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.save(2, checkpoints.Position(0, 2, 0.6), {"w": tree["w"] + 0.1})
    monkeypatch.undo()
    _assert_first_is_readable(tmp_path, tree)
