"""The loop: runs that were killed, divergence, the best network."""

import importlib.util
import json
import os
import pathlib
import resource
import signal
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prunejax import masks, models, training
from prunejax.classifier import Network
from prunejax.training import Phase, Trained, checkpoints, loop, objectives

TOY = pathlib.Path(__file__).parent / "toy.py"
_spec = importlib.util.spec_from_file_location("toy", TOY)
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)


@pytest.fixture(scope="module")
def undisturbed():
    """What the run ends with, and its rows."""
    rows = []
    return toy.run(None, log=rows.append), rows


def _start(directory, *args):
    command = [sys.executable, str(TOY), str(directory), *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _newest(directory):
    return max(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def _epochs(directory):
    """Rows of metrics.jsonl."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def _scalars(directory):
    """Values by tag and step, as TensorBoard reads its files: a start discards what it repeats."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    values = {}
    for path in sorted(directory.glob("*.out.tfevents.*")):
        content, place = path.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            event = Event.FromString(content[place + 12 : place + 12 + length])
            place += 8 + 4 + length + 4  # length, its checksum, the event, its checksum
            if event.session_log.status == SessionLog.START:
                values = {key: value for key, value in values.items() if key[1] < event.step}
            for value in event.summary.value:
                assert (value.tag, event.step) not in values
                values[value.tag, event.step] = value.simple_value
    return values


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run that was killed three times, and then went on to its end."""
    directory = tmp_path_factory.mktemp("killed")
    # The newest checkpoint before; the rows that are left; each process finds what the last left.
    for when, saved, epochs in (("mid-epoch", 4, 5), ("mkdir", 6, 8), ("rename", 8, 10)):
        process = _start(directory, when)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL, output
        assert not (directory / "result.npz").exists()
        assert _newest(directory / "checkpoints") == saved
        assert len(_epochs(directory)) == epochs
    process = _start(directory)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return directory


@pytest.mark.slow
def test_killed_between_and_during_saves_ends_bit_identical(killed, undisturbed):
    expected, rows = undisturbed
    sizes = [row["size"] for row in rows]
    assert np.argmax(sizes[4:]) == 0  # the best was found before all but the first kill
    with np.load(killed / "result.npz") as found:
        assert set(found) == set(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert any((expected[name] != expected["last/" + name]).any() for name in _params(expected))


def _params(result):
    return [name for name in result if name.startswith("params/")]


@pytest.mark.slow
def test_a_killed_run_has_each_epoch_once_in_its_metrics(killed, undisturbed):
    _, rows = undisturbed
    assert _epochs(killed) == rows
    assert [row["epoch"] for row in rows] == list(range(1, 11))
    assert _scalars(killed / "tensorboard") == {
        (name, row["step"]): np.float32(value)
        for row in rows
        for name, value in row.items()
        if name != "phase"
    }


def test_a_finished_run_is_found_again(tmp_path):
    first = toy.run(tmp_path)
    rows, calls = [], []
    second = toy.run(tmp_path, log=rows.append, progress=lambda *call: calls.append(call))
    assert rows == []
    assert calls == [(40, 40)]  # ten epochs of four steps, none of which is left
    assert second.keys() == {name for name in first if not name.startswith("last/")}
    for name, value in second.items():
        np.testing.assert_array_equal(value, first[name])


def _network():
    network = Network(models.create("mlp", 3, widths=(4,)))
    variables = network.init(jax.random.key(0), (4, 4, 1))
    return network, Trained(variables, masks.dense(variables["params"]))


def _phase(tx, epochs, objective=None, **options):
    return Phase(
        name="train",
        epochs=epochs,
        objective=objective or objectives.natural(),
        optimizer=lambda mask: tx,
        **options,
    )


@pytest.mark.parametrize(
    ("bad", "message", "saved"),
    [
        (5, "nan at step 6", 1),  # three epochs of 4 steps; the loss of the next step tells
        (7, "params/Dense_0/bias is not finite after step 7", 1),  # the last of an epoch
        (11, "params/Dense_0/bias is not finite after step 11", 2),  # the last of all
    ],
)
def test_divergence_names_the_step_and_keeps_the_last_good_checkpoint(
    tmp_path, bad, message, saved
):
    network, start = _network()

    def update(trainable, bad, step):
        return jax.tree.map(lambda p: jnp.where(step == bad, jnp.nan, p), trainable), bad

    phase = _phase(
        optax.sgd(1e-2),
        3,
        begin=lambda start: (start.params, jnp.int32(bad), start.mask),
        update=update,
    )
    store, rows = checkpoints.Store(tmp_path), []
    with pytest.raises(training.DivergedError, match=message):
        training.train(
            network, start, [phase], toy.dataset(), batch_size=16, store=store, log=rows.append
        )
    store.close()
    assert len(rows) == saved
    again = checkpoints.Store(tmp_path)
    latest = again.latest()
    assert latest[:2] == (0, saved)
    leaves = jax.tree.leaves(again.restore(latest, None))
    assert len(leaves) > len(jax.tree.leaves(start.variables))
    assert all(np.isfinite(leaf).all() for leaf in leaves)
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


def test_chunks_change_nothing_but_how_often_progress_is_reported(monkeypatch):
    network, start = _network()

    def run():
        calls, rows = [], []

        def objective(*args):
            calls.append("compiled")
            return objectives.natural()(*args)

        trained = training.train(
            network,
            start,
            [_phase(optax.sgd(0.1), 2, objective)],
            toy.dataset(),
            batch_size=16,
            shift=1,
            progress=lambda *call: calls.append(call),
            log=rows.append,
        )
        return trained, calls, rows

    whole, calls, rows = run()
    assert calls[0] == (0, 8)  # before anything is compiled
    assert [call for call in calls if call != "compiled"] == [(0, 8), (4, 8), (8, 8)]
    monkeypatch.setattr(loop, "LEAST_STEPS", 1)
    monkeypatch.setattr(loop, "CHUNK_BYTES", 3 * 16 * 16)  # three steps of 16 images of 4x4
    parts, calls, rows_of_parts = run()
    assert [call for call in calls if call != "compiled"] == [(i, 8) for i in range(9)]
    jax.tree.map(np.testing.assert_array_equal, parts, whole)
    for row, expected in zip(rows_of_parts, rows, strict=True):
        assert row == pytest.approx(expected)


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


@pytest.mark.parametrize(("name", "value"), [("shift", -1), ("checkpoint_every", 0)])
def test_numbers_out_of_range_are_refused(name, value):
    network, start = _network()
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        training.train(
            network,
            start,
            [_phase(optax.sgd(0.1), 1)],
            toy.dataset(),
            batch_size=16,
            **{name: value},
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
