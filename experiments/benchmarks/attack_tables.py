"""Tables in Markdown of what `experiments.benchmarks.attacks` has saved.

For example, from the root:

    python -m experiments.benchmarks.attack_tables > experiments/benchmarks/results/attacks.md
"""

import io
import json
import math
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags
from rich import box
from rich.console import Console
from rich.table import Table

HEADER = """\
# Attacks beside other libraries'

Made by `python -m experiments.benchmarks.attack_tables` from the JSON files beside it, a table for
each, which `python -m experiments.benchmarks.attacks --peers` has saved (notes on what else the
machine did were added). What they say stands in [`../README.md`](../README.md). "left" is what an
attack does not find (at a fixed budget: robust images), "found" the share of the others. Distances
are those of minimum-norm attacks: the median over all images, the mean over those that were found.
"a second" are examples, x is a library's time over ours, MiB the peak memory of the whole process,
which holds whatever earlier attacks of the run have left in it. An attack without peers either has
none from PyPI (`attack_cases.py`), or the run was made without them. **Bold** is what is more than
0.3 points of success behind the peer, or beyond 1.02 x its median.
"""
POINTS, FARTHER = 0.003, 1.02


def main(_) -> None:
    """Prints the tables of all runs in the folder."""
    sys.stdout.write(markdown(reports(pathlib.Path(flags.FLAGS.results))))


def reports(folder: pathlib.Path) -> list[Mapping[str, Any]]:
    """What the runs in the folder have saved, in the order of the files' names."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("attacks_*.json"))]


def markdown(reports: Sequence[Mapping[str, Any]]) -> str:
    """All reports as one page."""
    return "\n".join([HEADER, *map(_section, reports)])


def _section(report: Mapping[str, Any]) -> str:
    table = Table(box=box.MARKDOWN)
    for header in ("attack", "norm", "eps", "library"):
        table.add_column(header)
    for header in ("left", "found", "median", "mean", "seconds", "a second", "x", "MiB"):
        table.add_column(header, justify="right")
    rows = report["measurements"]
    ours = {row["attack"]: row for row in rows if row["library"] == "prunejax"}
    for row in rows:
        is_ours = row["library"] == "prunejax"
        worse = [] if not is_ours else [_behind(row, r) for r in rows if _is_peer(r, row)]
        table.add_row(
            f"`{row['attack']}`" if is_ours else "",
            row["norm"] if is_ours else "",
            _number(row["eps"], ".4g") if is_ours else "",
            row["library"],
            _bold(row.get("robust", "failed"), any(left for left, _ in worse)),
            _number(100 * row["success"] if "success" in row else None, ".1f"),
            _bold(_distance(row, _median), any(farther for _, farther in worse)),
            _distance(row, lambda row: row["mean_distance_of_found"]),
            _number(row.get("seconds"), ".1f"),
            _number(_rate(row), ".3g"),
            "" if is_ours else _number(_ratio(row, ours[row["attack"]]), ".2f"),
            _number(row.get("peak_memory_mib"), ".0f"),
        )
    page = io.StringIO()
    Console(file=page, width=200).print(table)
    lines = [line.strip() for line in page.getvalue().splitlines() if line.strip()]
    return "\n".join([f"## {report['data']}\n", f"{_where(report)}\n", *lines, ""])


def _where(report: Mapping[str, Any]) -> str:
    machine, versions = report["machine"], report["versions"]
    libraries = ", ".join(f"{name} {v}" for name, v in versions.items() if name != "prunejax")
    compiled = report.get("compile_seconds")
    compiling = "" if compiled is None else f"; compiling took {compiled:.0f} s in all"
    of = f"{machine['cores']} cores of a machine with {machine['processor']}"
    if machine["backend"] != "cpu":
        of = f"{machine['devices']} {machine['device']}, {of}"
    note = f" {report['note']}" if "note" in report else ""
    return f"{report['date'][:10]}, {of}, Python {machine['python']}, {libraries}{compiling}.{note}"


def _is_peer(row: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    return row["attack"] == ours["attack"] and row is not ours and "error" not in row


def _behind(ours: Mapping[str, Any], peer: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether ours finds less by more than chance rounding allows, and whether it is farther."""
    less = ours["success"] < peer["success"] - POINTS
    return less, ours["eps"] is None and _median(ours) > FARTHER * _median(peer)


def _median(row: Mapping[str, Any]) -> float:
    """JSON has no infinity: the median of images most of which were not found is saved as null."""
    return math.inf if row["median_distance"] is None else row["median_distance"]


def _ratio(row: Mapping[str, Any], ours: Mapping[str, Any]) -> float | None:
    return row["seconds"] / ours["seconds"] if row.get("seconds") else None


def _rate(row: Mapping[str, Any]) -> float | None:
    return row["examples"] / row["seconds"] if row.get("seconds") else None


def _distance(row: Mapping[str, Any], of: Callable[[Mapping[str, Any]], float | None]) -> str:
    return "" if "error" in row or row["eps"] is not None else _number(of(row), ".4g")


def _bold(text: Any, is_bold: bool) -> str:
    return f"**{text}**" if is_bold else str(text)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


if __name__ == "__main__":
    flags.DEFINE_string(
        "results",
        str(pathlib.Path(__file__).parent / "results"),
        "The folder whose attacks_*.json, as the benchmark of attacks saves them, are shown.",
    )
    app.run(main)
