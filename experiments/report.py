"""Table, curves and page of one run or several.

Accuracies and curves are computed from the records alone, here and now; densities, numbers of
parameters and bytes are those that `experiments.evaluate` counted for `summary.json`.

python -m experiments.report --workdirs=runs/dense,runs/blind --output=runs/report
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
      workdirs: evaluated runs by the name to show.
      output: folder to write to.
      report: called with (task, files written, files in all).

    Raises:
      FileNotFoundError: a folder without an evaluated run.
      ValueError: runs without an attack in common, or evaluated on other images, with other
        options of an attack or at other budgets.
    """
    report("report", 0, 3)
    configs = {name: run_directory.read_config(folder) for name, folder in workdirs.items()}
    tables = {name: records.read_all(folder / "records") for name, folder in workdirs.items()}
    summaries = {name: _summary(workdirs[name], configs[name], tables[name]) for name in workdirs}
    names = [
        [row["attack"] for row in summary["robust_accuracy"]] for summary in summaries.values()
    ]
    shared = [name for name in names[0] if all(name in others for others in names)]
    if not shared:
        raise ValueError(
            f"No attack is complete in each of {', '.join(map(str, workdirs.values()))}; run "
            "experiments.evaluate on each with the same --attacks."
        )
    _require_alike(configs, shared)
    for summary in summaries.values():
        summary["robust_accuracy"] = [
            row for row in summary["robust_accuracy"] if row["attack"] in shared
        ]
    config, summary = next(iter(configs.values())), next(iter(summaries.values()))
    figure = reporting.security_curves(tables, from_config.protocols(config, shared))
    table = reporting.comparison(summaries)
    output.mkdir(parents=True, exist_ok=True)
    for number, suffix in enumerate(("png", "pdf"), start=1):
        figure.savefig(output / f"security_curves.{suffix}", dpi=150)
        report("report", number, 3)
    note = (
        f"Data: {config.dataset.name}, the first {summary['examples']} examples of the test split. "
        "Accuracies are upper bounds: a stronger attack can only lower them. Masks alone save "
        "neither time nor memory while computing."
    )
    page = reporting.page(f"prunejax: {', '.join(workdirs)}", table, figure, note)
    run_directory.write_text(output / "index.html", page)
    report("report", 3, 3)
    return table


def _summary(workdir: pathlib.Path, config, table) -> dict[str, Any]:
    """What `experiments.evaluate` counted, and the accuracies that the records say."""
    remedy = "Remove it, and experiments.evaluate writes it again."
    summary = run_directory.read_json(workdir / "summary.json", remedy)
    return summary | accuracies(table, from_config.protocols(config), summary["examples"])


def _require_alike(configs: Mapping[str, Any], attacks: Sequence[str]) -> None:
    """Raises a ValueError for runs whose numbers by these attacks cannot be compared."""
    (first, expected), *others = (
        (name, _evaluation(config, attacks)) for name, config in configs.items()
    )
    for name, found in others:
        differing = [
            f"{key}: {here!r}, not {there!r}"
            for key, (there, here) in run_directory.differences(expected, found).items()
        ]
        if differing:
            raise ValueError(
                f"{name} was evaluated otherwise than {first} ({'; '.join(differing)}); what they "
                "reach cannot be compared. Report them apart."
            )


def _evaluation(config, attacks: Sequence[str]) -> dict[str, Any]:
    """Which images were attacked, and how."""
    protocols = config.evaluation.protocols
    return {
        "dataset": {
            "name": config.dataset.name,
            "image_size": config.dataset.get("image_size"),  # older runs have none
        },
        "evaluation": {
            "examples": config.evaluation.examples,
            "protocols": {attack: protocols[attack].to_dict() for attack in attacks},
        },
    }


def main() -> None:
    """Runs the command."""
    directories = [pathlib.Path(path) for path in flags.FLAGS.workdirs]
    workdirs = run_directory.by_name(directories)
    with progress.bars() as show:
        table = write_report(workdirs, pathlib.Path(flags.FLAGS.output), report=show)
    Console().print(table)


if __name__ == "__main__":
    flags.DEFINE_list("workdirs", None, "Folders of evaluated runs, separated by commas.")
    flags.DEFINE_string("output", None, "Folder for index.html and the figures.")
    flags.adopt_module_key_flags(environment)
    flags.mark_flags_as_required(["workdirs", "output"])
    environment.run(main)
