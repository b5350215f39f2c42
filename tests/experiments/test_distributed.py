"""Several processes started with one command, as on a cluster, do the work of one."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from experiments import evaluate, from_config, run_directory, train
from experiments.configs import digits_dense
from prunejax import data

pytestmark = pytest.mark.slow
FLAGS = {
    "model.name": "mlp",
    "method.epochs": 1,
    "method.attack_steps": 2,
    "validation.steps": 2,
    "evaluation.examples": 31,
    "evaluation.protocols.linf_pgd.options.steps": 5,
}


def _config():
    config = digits_dense.get_config()
    config.update_from_flattened_dict(FLAGS)
    return config


def _as_two_processes(module, *args):
    """Open MPI's environment is one that jax.distributed recognises."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, "--distributed", "--cpu_devices=1", *args],
            env=os.environ
            | {
                "OMPI_MCA_orte_hnp_uri": "1.0;tcp://127.0.0.1:1",
                "OMPI_COMM_WORLD_SIZE": "2",
                "OMPI_COMM_WORLD_RANK": str(rank),
                "OMPI_COMM_WORLD_LOCAL_RANK": str(rank),
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    return outputs


def test_two_processes_train_and_evaluate_as_one(tmp_path):
    ours, alone = tmp_path / "two", tmp_path / "one"
    flags = [f"--config.{name}={value}" for name, value in FLAGS.items()]
    config = "--config=experiments/configs/digits_dense.py"
    _as_two_processes("experiments.train", config, f"--workdir={ours}", *flags)
    outputs = _as_two_processes("experiments.evaluate", f"--workdir={ours}", "--attacks=linf_pgd")
    assert sum("clean" in output for output in outputs) == 1, "one process prints the table"

    train.train(_config(), alone)
    test = data.load("digits", "test")
    found, expected = (
        from_config.load_trained(run_directory.read_config(folder), folder, test)[0]
        for folder in (ours, alone)
    )
    images = test.images / np.float32(255)
    np.testing.assert_allclose(found(images), expected(images), rtol=1e-3, atol=1e-3)

    # The same network attacked by one process: the records differ in nothing but rounding.
    summary = json.loads((ours / "summary.json").read_text())
    of_two = {path.stem: pq.read_table(path) for path in (ours / "records").iterdir()}
    for path in (ours / "records").iterdir():
        path.unlink()
    assert evaluate.evaluate_run(ours, ["linf_pgd"]) == summary
    for name, table in of_two.items():
        again = pq.read_table(ours / "records" / f"{name}.parquet")
        order = [("budget", "ascending"), ("index", "ascending")]
        table, again = table.sort_by(order), again.sort_by(order)
        assert table["index"].equals(again["index"])
        np.testing.assert_allclose(table["distance"], again["distance"], rtol=1e-4)
