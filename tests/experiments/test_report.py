"""The report: accuracies come from the records, whatever else lies in the folder."""

import json

import numpy as np
import pytest

from experiments import from_config, report, run_directory
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
    """Writes the folder of a run whose summary lies about the accuracies."""

    def write(name="run", /, **changed):
        config = digits_dense.get_config()
        del config.evaluation.protocols
        config.evaluation.protocols = {
            "fgsm": protocol("fgsm", (0.0, 0.1), 0.1),
            "deepfool": protocol("deepfool", (0.5, 1.0), 0.55, steps=7),
            "half_done": protocol("deepfool", (0.5, 1.0), 0.5),
        }
        with config.unlocked():
            config.update_from_flattened_dict(changed)
        run_directory.open_run(tmp_path / name, config)
        folder = tmp_path / name / "records"
        at = [_rows("fgsm", 0.0, WRONG, np.zeros(10)), _rows("fgsm", 0.1, FALLEN, np.zeros(10))]
        records.write(folder / "fgsm.parquet", records.pa.concat_tables(at), "")
        found = np.ones(EXAMPLES, bool)
        records.write(folder / "deepfool.parquet", _rows("deepfool", None, found, DISTANCES), "")
        some = _rows("half_done", None, found, DISTANCES, number=9)
        records.write(folder / "half_done.parquet", some, "")
        summary = {
            "clean_accuracy": 0.99,
            "robust_accuracy": [
                {"attack": "fgsm", "norm": "linf", "budget": 0.1, "accuracy": 0.98}
            ],
            "examples": EXAMPLES,
            "nominal_density": 0.5,
            "real_density": 0.25,
            "nonzero_parameters": 1234,
            "bytes_on_disk": 2048,
        }
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
        return tmp_path / name

    return write


def test_accuracies_are_computed_from_the_records(run):
    calls, folder = [], run()
    table = report.write_report(
        {"it": folder}, folder / "report", report=lambda *call: calls.append(call)
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


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"evaluation.examples": 1000}, r"evaluation\.examples: 1000, not 200"),
        ({"dataset.name": "mnist"}, r"dataset\.name: 'mnist', not 'digits'"),
        ({"dataset.image_size": 28}, r"dataset\.image_size: 28, not None"),
        (
            {"evaluation.protocols.deepfool.options.steps": 2},
            r"evaluation\.protocols\.deepfool\.options\.steps: 2, not 7",
        ),
        (
            {"evaluation.protocols.deepfool.stated": 0.5},
            r"evaluation\.protocols\.deepfool\.stated: 0\.5, not 0\.55",
        ),
    ],
    ids=str,
)
def test_runs_that_were_evaluated_otherwise_are_not_compared(run, tmp_path, changed, sentence):
    runs = {"a": run("a"), "b": run("b", **changed)}
    with pytest.raises(ValueError, match=f"^b was evaluated otherwise than a .{sentence}.;"):
        report.write_report(runs, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_what_changes_no_number_may_differ(run, tmp_path):
    other = {
        "seed": 1,
        "method.epochs": 3,
        "dataset.data_dir": "elsewhere",
        "evaluation.batch_size": 7,
        "evaluation.protocols.half_done.stated": 1.0,  # not shown
    }
    table = report.write_report({"a": run("a"), "b": run("b", **other)}, tmp_path / "report")
    a, b = zip(*(column.cells for column in table.columns), strict=True)
    assert (a[0], b[0]) == ("a", "b")
    assert a[1:] == b[1:]


def test_runs_without_an_attack_in_common_are_named(run, tmp_path):
    a, b = run("a"), run("b")
    (a / "records" / "fgsm.parquet").unlink()
    (b / "records" / "deepfool.parquet").unlink()
    with pytest.raises(ValueError, match=f"No attack is complete in each of {a}, {b}; run exp"):
        report.write_report({"a": a, "b": b}, tmp_path / "report")


def test_no_protocol_is_not_all_of_them():
    config = digits_dense.get_config()
    every = sorted(protocol.name for protocol in from_config.protocols(config))
    assert every == ["l0_sigma_zero", "l2_deepfool", "linf_pgd"]
    assert from_config.protocols(config, []) == []
    assert [p.name for p in from_config.protocols(config, every[1:2])] == every[1:2]


def test_a_damaged_summary_is_named(run, tmp_path):
    path = run() / "summary.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=rf"{path} is damaged .*experiments\.evaluate writes it"):
        report.write_report({"run": path.parent}, tmp_path / "report")
