"""Attacks the network of a finished run, as its config says, and reports what is left.

    python -m experiments.evaluate --workdir=runs/blind [--attacks=linf_pgd,l0_sigma_zero]

Leaves records, a summary and a report in the run's folder; what is there already is not repeated.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import flags
from rich.console import Console

from experiments import environment, from_config, progress, report, run_directory
from prunejax import masks, trees
from prunejax.evaluation import accuracies, evaluate, records


def evaluate_run(
    workdir: pathlib.Path,
    chosen: Sequence[str] | None = None,
    *,
    report: Callable[[str, int, int], None] = lambda task, done, total: None,
) -> dict[str, Any]:
    """Runs the protocols on the test split, and writes records and `summary.json`.

    The summary has every protocol whose records are complete, also those of earlier calls.

    Args:
      workdir: folder of a finished run.
      chosen: names of protocols; all of the config's where None.
      report: called with (task, examples done, examples in all).

    Returns:
      The summary.
    """
    config = run_directory.read_config(workdir)
    from_config.check_ranges(config)
    plan = from_config.protocols(config, chosen)
    dataset = from_config.load_split(config, "test", report)
    dataset = dataset.take(min(config.evaluation.examples, len(dataset)))
    classifier, mask = from_config.load_trained(config, workdir, dataset)
    evaluate(
        classifier,
        dataset,
        plan,
        workdir / "records",
        seed=config.seed,
        batch_size=config.evaluation.batch_size,
        progress=lambda name, done, total: report(f"evaluate {workdir.name} {name}", done, total),
    )
    table = records.read_all(workdir / "records")
    params = classifier.params
    summary = {
        **accuracies(table, from_config.protocols(config), len(dataset)),
        "warnings": {
            protocol.name: warnings
            for protocol in from_config.protocols(config)
            if (warnings := records.warnings_in(workdir / "records" / f"{protocol.name}.parquet"))
        },
        "examples": len(dataset),
        "nominal_density": masks.nominal_density(params, mask),
        "real_density": masks.density(params, mask),
        "parameters": trees.size(params),
        "nonzero_parameters": int(sum(jax.numpy.count_nonzero(p) for p in jax.tree.leaves(params))),
        "bytes_on_disk": sum(
            f.stat().st_size for f in (workdir / "network").rglob("*") if f.is_file()
        ),
    }
    if jax.process_index() == 0:
        run_directory.write_json(workdir / "summary.json", summary)
    return summary


def main() -> None:
    """Runs the command."""
    workdir = pathlib.Path(flags.FLAGS.workdir)
    with progress.bars() as show:
        summary = evaluate_run(workdir, flags.FLAGS.attacks or None, report=show)
        is_first = jax.process_index() == 0
        if is_first:
            named = run_directory.by_name([workdir])
            table = report.write_report(named, workdir / "report", report=show)
    if is_first:
        for attack, warnings in summary["warnings"].items():
            for warning in warnings:
                Console().print(f"{attack}: {warning}", style="yellow")
        Console().print(table)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "The folder of a run of experiments.train.")
    flags.DEFINE_list(
        "attacks", None, "Which of the config's evaluation.protocols to run; by default all."
    )
    flags.adopt_module_key_flags(environment)
    flags.mark_flags_as_required(["workdir"])
    environment.run(main)
