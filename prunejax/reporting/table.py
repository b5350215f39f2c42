"""The table that compares networks: one row each, computed from summaries."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table


def comparison(summaries: Mapping[str, Mapping[str, Any]]) -> Table:
    """A table for the terminal, a page or a notebook.

    Args:
      summaries: by network's name, `summary.json` of its run: `clean_accuracy`, `robust_accuracy`
        (a list of `{norm, attack, budget, accuracy}`), `nominal_density`, `real_density`,
        `nonzero_parameters` and `bytes_on_disk`.
    """
    table = Table()
    for header, *options in _columns(next(iter(summaries.values()))):
        table.add_column(header, justify=options[0] if options else "right", no_wrap=True)
    for name, summary in summaries.items():
        table.add_row(name, *_cells(summary))
    return table


def _columns(summary: Mapping[str, Any]) -> Sequence[tuple[str, ...]]:
    attacks = ((f"{row['attack']}\n<= {row['budget']:g}",) for row in summary["robust_accuracy"])
    return [
        ("network", "left"),
        ("clean\naccuracy",),
        *attacks,
        ("density\nnominal",),
        ("density\nreal",),
        ("non-zero\nparameters",),
        ("KiB on\ndisk",),
    ]


def _cells(summary: Mapping[str, Any]) -> list[str]:
    accuracies = [
        summary["clean_accuracy"],
        *(row["accuracy"] for row in summary["robust_accuracy"]),
    ]
    return [
        *(f"{100 * accuracy:.1f} %" for accuracy in accuracies),
        f"{100 * summary['nominal_density']:.1f} %",
        f"{100 * summary['real_density']:.2f} %",
        f"{summary['nonzero_parameters']:,}",
        f"{summary['bytes_on_disk'] / 1024:.0f}",
    ]
