"""The table that compares networks: one row each, computed from summaries."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table


def comparison(summaries: Mapping[str, Mapping[str, Any]]) -> Table:
    """A table for the terminal, a page or a notebook.

    Args:
      summaries: by network's name, `summary.json` of its run: `clean_accuracy`, `robust_accuracy`
        (a list of `{norm, attack, budget, accuracy}`), `nominal_density`, `real_density`,
        `nonzero_parameters`, `bytes_on_disk` and `examples`.
    """
    first = next(iter(summaries.values()))
    attacks = first["robust_accuracy"]
    by = "; ".join(f"{row['norm']} <= {row['budget']:g} by {row['attack']}" for row in attacks)
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,  # it fits into 80 columns
        pad_edge=False,
        caption=f"Accuracies in % of {first['examples']} examples; robust accuracy: {by}.",
    )
    table.add_column("network", no_wrap=True)
    for header in (
        "\nclean",
        *(f"\n{row['norm']}<={row['budget']:g}" for row in attacks),
        "density\nnominal",
        "density\nreal",
        "nonzero\nparams",
        "disk\nKiB",
    ):
        table.add_column(header, justify="right", no_wrap=True)
    for name, summary in summaries.items():
        table.add_row(name, *_cells(summary))
    return table


def _cells(summary: Mapping[str, Any]) -> Sequence[str]:
    robust = (row["accuracy"] for row in summary["robust_accuracy"])
    return [
        *(f"{100 * accuracy:.1f}" for accuracy in (summary["clean_accuracy"], *robust)),
        f"{summary['nominal_density']:.3f}",
        f"{summary['real_density']:.4f}",
        f"{summary['nonzero_parameters']:,}",
        f"{summary['bytes_on_disk'] / 1024:.0f}",
    ]
