"""The notebook runs top to bottom on a clean kernel, in a small setting."""

import json
import pathlib
import re

import nbclient
import nbformat
import pytest

NOTEBOOK = pathlib.Path(__file__).parents[2] / "colabs" / "quickstart.ipynb"


@pytest.mark.slow
@pytest.mark.exhaustive  # the same walk as test_quickstart, but for a cell or two
def test_runs_and_shows_what_its_run_directory_holds(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEJAX_EPOCHS", "2")
    monkeypatch.setenv("PRUNEJAX_EXAMPLES", "16")
    monkeypatch.setenv("PRUNEJAX_WORKDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "committed without outputs"
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    client.execute()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in outputs)
    alone, both = (
        float(re.search(f"^{line} +([01][.][0-9]+)$", printed, re.MULTILINE)[1])
        for line in ("robust accuracy, Linf 0.1", "robust against both")
    )
    assert both <= alone  # the ensemble's first attack is the one above
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 4
    shown = [o["data"]["text/plain"] for o in outputs if "text/plain" in o.get("data", {})]
    table = next(text for text in shown if "KiB" in text)
    for route in ("dense", "one_shot", "gradual_natural", "gradual_adversarial", "blind"):
        summary = json.loads((tmp_path / route / "summary.json").read_text())
        line = next(line for line in table.splitlines() if f" {route} " in line)
        assert f" {100 * summary['clean_accuracy']:.1f} " in line
        assert f"{summary['nonzero_parameters']:,}" in line
