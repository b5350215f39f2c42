"""The report: accuracies come from the records, whatever else lies in the folder."""

import json

import numpy as np
import pytest

from experiments import report, run_directory
from experiments.configs import digits_dense
from experiments.configs.base import protocol
from prunejax.evaluation import records

EXAMPLES = 10
# Wrong without an attack; fallen at 0.1; distances of DeepFool.
WRONG = np.arange(EXAMPLES) < 2
FALLEN = np.arange(EXAMPLES) < 5
DISTANCES = np.where(WRONG, 0.0, np.arange(EXAMPLES) / 10)


def _rows(attack, budget, success, distance, number=EXAMPLES):
    columns = {
        "index": np.arange(number),
        "label": np.zeros(number, int),
        "prediction": WRONG[:number].astype(int),
        "attack": attack,
        "norm": "linf" if attack == "fgsm" else "l2",
        "budget": budget,
        "success": success[:number],
        "distance": distance[:number],
    }
    others = set(records.SCHEMA.names) - set(columns)
    return records.table(columns | dict.fromkeys(others, 0) | {"member": None})


@pytest.fixture
def run(tmp_path):
    """The folder of a run whose summary lies about the accuracies."""
    config = digits_dense.get_config()
    del config.evaluation.protocols
    config.evaluation.protocols = {
        "fgsm": protocol("fgsm", (0.0, 0.1), 0.1),
        "deepfool": protocol("deepfool", (0.5, 1.0), 0.55),
        "half_done": protocol("deepfool", (0.5, 1.0), 0.5),
    }
    run_directory.open_run(tmp_path, config)
    folder = tmp_path / "records"
    at = [_rows("fgsm", 0.0, WRONG, np.zeros(10)), _rows("fgsm", 0.1, FALLEN, np.zeros(10))]
    records.write(folder / "fgsm.parquet", records.pa.concat_tables(at), "")
    found = np.ones(EXAMPLES, bool)
    records.write(folder / "deepfool.parquet", _rows("deepfool", None, found, DISTANCES), "")
    some = _rows("half_done", None, found, DISTANCES, number=9)
    records.write(folder / "half_done.parquet", some, "")
    summary = {
        "clean_accuracy": 0.99,
        "robust_accuracy": [{"attack": "fgsm", "norm": "linf", "budget": 0.1, "accuracy": 0.98}],
        "examples": EXAMPLES,
        "nominal_density": 0.5,
        "real_density": 0.25,
        "nonzero_parameters": 1234,
        "bytes_on_disk": 2048,
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    return tmp_path


def test_accuracies_are_computed_from_the_records(run):
    calls = []
    table = report.write_report(
        {"it": run}, run / "report", report=lambda *call: calls.append(call)
    )
    cells = {str(column.header).strip(): next(column.cells) for column in table.columns}
    # Distances 0, 0, 0.2, ..., 0.9: four of ten beyond 0.55. What is half done is left out.
    assert cells == {
        "network": "it",
        "clean": "80.0",
        "linf<=0.1": "50.0",
        "l2<=0.55": "40.0",
        "density\nnominal": "0.500",
        "density\nreal": "0.2500",
        "nonzero\nparams": "1,234",
        "disk\nKiB": "2",
    }
    assert calls == [("report", done, 3) for done in range(4)]
