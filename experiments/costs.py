r"""What trained networks cost: density, weights, work, bytes, time and memory.

    python -m experiments.costs --workdirs=runs/dense,runs/small --output=runs/costs

prints a table and writes `costs.json` and, for each run, a figure of its layers. Pruned networks
are counted with their masks, which make nothing faster; those of experiments.shrink as small as
they are.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import environment, from_config, progress, run_directory
from prunejax import reporting
from prunejax.evaluation import efficiency


def write_costs(
    workdirs: Mapping[str, pathlib.Path],
    output: pathlib.Path,
    *,
    batch_size: int = 128,
    report: Callable[[str, int, int], None] = lambda task, done, total: None,
) -> Table:
    """Writes `costs.json` and `NAME_layers.png` and `.pdf`; returns the table.

    Args:
      workdirs: folders of finished runs by the name to show.
      output: folder to write to.
      batch_size: images at a time, for latency and memory.
      report: called with (task, done, in all), in examples or batches.

    Raises:
      ValueError: a folder without a finished run, or a batch size below 1.
    """
    found = {}
    for name, workdir in workdirs.items():
        config = run_directory.read_config(workdir)
        dataset = from_config.load_split(config, "test", report)
        classifier, mask = from_config.load_trained(config, workdir, dataset)
        found[name] = efficiency.efficiency(
            classifier,
            dataset.image_shape,
            mask,
            batch_size=batch_size,
            progress=functools.partial(report, f"time {name}"),
        )
    for name, cost in found.items():
        figure = reporting.cost_figure(cost)
        for suffix in ("png", "pdf"):
            path = output / f"{name}_layers.{suffix}"  # the name may be one of folders
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=150)
    named = {
        name: cost._asdict() | {"layers": [layer._asdict() for layer in cost.layers]}
        for name, cost in found.items()
    }
    run_directory.write_json(output / "costs.json", named)
    return reporting.cost_table(found)


def main() -> None:
    """Runs the command."""
    directories = [pathlib.Path(path) for path in flags.FLAGS.workdirs]
    with progress.bars() as show:
        table = write_costs(
            run_directory.by_name(directories),
            pathlib.Path(flags.FLAGS.output),
            batch_size=flags.FLAGS.batch_size,
            report=show,
        )
    Console().print(table)


if __name__ == "__main__":
    flags.DEFINE_list("workdirs", None, "Folders of finished runs, separated by commas.")
    flags.DEFINE_string("output", None, "Folder for costs.json and the figures.")
    flags.DEFINE_integer("batch_size", 128, "Images at a time, for latency and memory.", 1)
    flags.adopt_module_key_flags(environment)
    flags.mark_flags_as_required(["workdirs", "output"])
    environment.run(main)
