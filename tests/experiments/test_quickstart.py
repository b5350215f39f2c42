"""The quickstart: what it reports follows from the records, and it is not done twice."""

import json
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from experiments import evaluate, from_config, quickstart, run_directory, train
from prunejax import data, masks

pytestmark = pytest.mark.slow
EXAMPLES = 16  # as in the test of the notebook, which shares the compiled programs


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("quickstart")
    quickstart.quickstart(directory, epochs=2, examples=EXAMPLES)
    return directory


def _summary(directory):
    return json.loads((directory / "summary.json").read_text())


def _records(directory, attack):
    table = pq.read_table(directory / "records" / f"{attack}.parquet")
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


def test_summaries_follow_from_the_records(workdir):
    for route in quickstart.ROUTES:
        summary = _summary(workdir / route)
        for entry in summary["robust_accuracy"]:
            rows = _records(workdir / route, entry["attack"])
            if rows["budget"][0] is None:
                robust = rows["distance"] > entry["budget"]
                right = rows["label"] == rows["prediction"]
            else:
                stated = np.isclose(rows["budget"], entry["budget"])
                robust = ~rows["success"][stated]
                right = (rows["label"] == rows["prediction"])[stated]
            assert len(robust) == len(right) == EXAMPLES
            assert entry["accuracy"] == pytest.approx(robust.mean())
            assert summary["clean_accuracy"] == pytest.approx(right.mean())


def test_records_hold_what_they_say(workdir):
    for route in quickstart.ROUTES:
        rows = _records(workdir / route, "linf_pgd")
        order = np.argsort(rows["index"][rows["budget"] == 0])
        np.testing.assert_array_equal(
            rows["label"][rows["budget"] == 0][order],
            data.load("digits", "test").labels[:EXAMPLES],
        )
        wrong = rows["label"] != rows["prediction"]
        assert (rows["distance"][wrong] == 0).all()
        found = rows["success"]
        assert (rows["linf"][found] <= rows["budget"][found] + 1e-6).all()
        np.testing.assert_allclose(rows["linf"][found], rows["distance"][found], atol=1e-6)
        budgets = np.unique(rows["budget"])
        robust = [np.mean(~found[rows["budget"] == budget]) for budget in budgets]
        assert (np.diff(robust) <= 0).all(), "robust accuracy rises with the budget"


def test_networks_are_as_sparse_as_their_summaries_say(workdir):
    test = data.load("digits", "test")
    for route in quickstart.ROUTES:
        config = run_directory.read_config(workdir / route)
        classifier, mask = from_config.load_trained(config, workdir / route, test)
        weights = [leaf for leaf in jax.tree.leaves(classifier.params) if leaf.ndim > 1]
        nonzero = sum(int(np.count_nonzero(leaf)) for leaf in weights)
        density = nonzero / sum(leaf.size for leaf in weights)
        summary = _summary(workdir / route)
        assert density == pytest.approx(masks.density(classifier.params, mask))
        assert density == pytest.approx(summary["real_density"])
        assert density == pytest.approx(summary["nominal_density"])  # all weights may go here
        assert density == pytest.approx(1.0 if route == "dense" else 0.1, abs=1e-3)


def test_the_second_run_trains_and_attacks_nothing(workdir, monkeypatch):
    before = {route: _summary(workdir / route) for route in quickstart.ROUTES}

    def never(*args, **kwargs):
        raise AssertionError("done a second time")

    monkeypatch.setattr("prunejax.training.train", never)
    monkeypatch.setattr("prunejax.attacks.run", never)
    quickstart.quickstart(workdir, epochs=2, examples=EXAMPLES)
    assert before == {route: _summary(workdir / route) for route in quickstart.ROUTES}


def test_report_is_complete(workdir):
    report = workdir / "report"
    assert (report / "security_curves.png").read_bytes().startswith(b"\x89PNG")
    assert (report / "security_curves.pdf").read_bytes().startswith(b"%PDF")
    page = (report / "index.html").read_text()
    for route in quickstart.ROUTES:
        assert f"{_summary(workdir / route)['nonzero_parameters']:,}" in page


@pytest.mark.parametrize("process", [0, 1])
def test_another_config_in_the_same_folder_is_refused(workdir, monkeypatch, process):
    monkeypatch.setattr(jax, "process_index", lambda: process)  # none waits for the first
    config = quickstart.ROUTES["blind"].get_config()
    config.method.scale = 0.5
    with pytest.raises(run_directory.ConfigMismatchError, match=r"method\.scale: 0\.9 there, 0\.5"):
        train.train(config, workdir / "blind")
    assert run_directory.read_config(workdir / "blind").method.scale == 0.9


def test_evaluating_some_attacks_keeps_what_is_known_of_the_others(workdir, tmp_path):
    shutil.copytree(workdir / "dense", tmp_path / "dense")
    before = _summary(tmp_path / "dense")
    (tmp_path / "dense" / "records" / "l2_deepfool.parquet").unlink()
    without = evaluate.evaluate_run(tmp_path / "dense", ["linf_pgd"])
    expected = [row for row in before["robust_accuracy"] if row["attack"] != "l2_deepfool"]
    assert without["robust_accuracy"] == expected
    assert evaluate.evaluate_run(tmp_path / "dense", ["l2_deepfool"]) == before


def _until(happened, process):
    deadline = time.monotonic() + 300
    while not happened():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "nothing to kill has been written"
        time.sleep(0.01)


@pytest.mark.exhaustive  # training and evaluation are each killed in their own tests
def test_killed_anywhere_it_ends_as_if_left_alone(workdir, tmp_path):
    command = [sys.executable, "-m", "experiments.quickstart", "--cpu_devices=2"]
    command += [f"--workdir={tmp_path}", "--epochs=2", f"--examples={EXAMPLES}"]
    # While the first network is trained, and while the second one is attacked.
    moments = [
        tmp_path / "dense" / "metrics.jsonl",
        tmp_path / "one_shot" / "records" / "linf_pgd.parquet",
    ]
    for moment in moments:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        _until(moment.exists, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    quickstart.quickstart(tmp_path, epochs=2, examples=EXAMPLES)
    for route in quickstart.ROUTES:
        assert _summary(tmp_path / route) == _summary(workdir / route)
        lines = (tmp_path / route / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
        for attack in ("linf_pgd", "l2_deepfool", "l0_sigma_zero"):
            found, wanted = (_records(folder / route, attack) for folder in (tmp_path, workdir))
            order, wanted_order = (
                np.lexsort((rows["index"], rows["budget"].astype(float)))
                for rows in (found, wanted)
            )
            for name in ("success", "distance", "prediction"):
                np.testing.assert_array_equal(found[name][order], wanted[name][wanted_order])
