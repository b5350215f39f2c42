"""Several processes started with one command, as on a cluster, do the work of one."""

import json
import os
import runpy
import socket
import subprocess
import sys

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from experiments import evaluate, from_config, run_directory, train
from prunejax import data, trees

pytestmark = pytest.mark.slow
CONFIG = """
from experiments.configs import digits_gradual_adversarial


def get_config():
    config = digits_gradual_adversarial.get_config()
    config.model.name = "mlp"
    config.model.options.widths = (16,)  # no two weights so alike that rounding decides
    config.method.update(epochs=2, pruning_epochs=1, mask_frequency=7, sparsity=0.5, attack_steps=2)
    config.validation.steps = 2
    config.evaluation.examples = 31
    config.evaluation.protocols.linf_pgd.options.steps = 5
    return config
"""


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


@pytest.mark.exhaustive
def test_two_processes_train_and_evaluate_as_one(tmp_path):
    ours, alone = tmp_path / "two", tmp_path / "one"
    (tmp_path / "config.py").write_text(CONFIG)
    _as_two_processes("experiments.train", f"--config={tmp_path}/config.py", f"--workdir={ours}")
    outputs = _as_two_processes("experiments.evaluate", f"--workdir={ours}", "--attacks=linf_pgd")
    assert sum("clean" in output for output in outputs) == 1, "one process prints the table"

    train.train(runpy.run_path(tmp_path / "config.py")["get_config"](), alone)
    test = data.load("digits", "test")
    (found, mask), (expected, expected_mask) = (
        from_config.load_trained(run_directory.read_config(folder), folder, test)
        for folder in (ours, alone)
    )
    jax.tree.map(np.testing.assert_array_equal, mask, expected_mask)
    for path, leaf in trees.flatten(expected.variables).items():
        # The sum over two processes may round otherwise than that over two devices.
        close = {"rtol": 1e-3, "atol": 1e-5, "err_msg": path}
        np.testing.assert_allclose(trees.flatten(found.variables)[path], leaf, **close)

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
