"""Table, curves and page of one run or several.

Accuracies and curves are computed from the records alone, here and now; densities, numbers of
parameters and bytes are those that `experiments.evaluate` counted for `summary.json`.

python -m experiments.report --workdirs=runs/dense,runs/blind --output=runs/report
"""

import json
import pathlib
from collections.abc import Callable, Mapping

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import environment, from_config, progress, run_directory
from prunejax import reporting
from prunejax.evaluation import accuracies, records


def write_report(
    workdirs: Mapping[str, pathlib.Path],
    output: pathlib.Path,
    *,
    report: Callable[[str, int, int], None] = lambda task, done, total: None,
) -> Table:
    """Writes `index.html`, `security_curves.png` and `.pdf`; returns the table.

    They show the attacks that every one of the runs has been evaluated with.

    Args:
      workdirs: evaluated runs by the name to show; they must share their evaluation protocols.
      output: folder to write to.
      report: called with (task, files written, files in all).
    """
    report("report", 0, 3)
    config = run_directory.read_config(next(iter(workdirs.values())))
    protocols = from_config.protocols(config)
    tables = {name: records.read_all(directory / "records") for name, directory in workdirs.items()}
    summaries = {}
    for name, directory in workdirs.items():
        summary = json.loads((directory / "summary.json").read_text())
        summaries[name] = summary | accuracies(tables[name], protocols, summary["examples"])
    names = [
        [row["attack"] for row in summary["robust_accuracy"]] for summary in summaries.values()
    ]
    shared = [name for name in names[0] if all(name in others for others in names)]
    for summary in summaries.values():
        summary["robust_accuracy"] = [
            row for row in summary["robust_accuracy"] if row["attack"] in shared
        ]
    figure = reporting.security_curves(tables, from_config.protocols(config, shared))
    table = reporting.comparison(summaries)
    output.mkdir(parents=True, exist_ok=True)
    for number, suffix in enumerate(("png", "pdf"), start=1):
        figure.savefig(output / f"security_curves.{suffix}", dpi=150)
        report("report", number, 3)
    examples = next(iter(summaries.values()))["examples"]
    note = (
        f"Data: {config.dataset.name}, the first {examples} examples of the test split. Accuracies "
        "are upper bounds: a stronger attack can only lower them. Masks alone save neither time "
        "nor memory while computing."
    )
    page = reporting.page(f"prunejax: {', '.join(workdirs)}", table, figure, note)
    run_directory.write_text(output / "index.html", page)
    report("report", 3, 3)
    return table


def main() -> None:
    """Runs the command."""
    directories = [pathlib.Path(path) for path in flags.FLAGS.workdirs]
    workdirs = {directory.name: directory for directory in directories}
    with progress.bars() as show:
        table = write_report(workdirs, pathlib.Path(flags.FLAGS.output), report=show)
    Console().print(table)


if __name__ == "__main__":
    flags.DEFINE_list("workdirs", None, "Folders of evaluated runs, separated by commas.")
    flags.DEFINE_string("output", None, "Folder for index.html and the figures.")
    flags.adopt_module_key_flags(environment)
    flags.mark_flags_as_required(["workdirs", "output"])
    environment.run(main)
