"""What networks cost, as a table, and where in a network the cost is, as a figure."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table

from prunejax.evaluation.efficiency import Efficiency

if TYPE_CHECKING:
    import matplotlib.figure


def cost_table(costs: Mapping[str, Efficiency]) -> Table:
    """One row a network.

    Args:
      costs: by network's name, as `evaluation.efficiency.efficiency` gives them.

    Raises:
      ValueError: they were measured at several batch sizes.
    """
    sizes = {cost.batch_size for cost in costs.values()}
    if len(sizes) > 1:
        raise ValueError(f"costs are of batches of {sorted(sizes)} images; measure all at one.")
    table = Table(
        caption="Nominal density: of the weights that the mask could remove; density: of all. "
        "FLOPs of one image; effective: without those of zero weights, which a mask does not save "
        f"by itself. Latency and memory of a batch of {sizes.pop()}, measured here."
    )
    table.add_column("network", no_wrap=True)
    for header in (
        "nominal",
        "density",
        "parameters",
        "nonzero",
        "MFLOPs",
        "effective",
        "disk KiB",
        "ms",
        "MiB",
        "images/s",
    ):
        table.add_column(header, justify="right")
    for name, cost in costs.items():
        table.add_row(
            name,
            f"{cost.nominal_density:.4f}",
            f"{cost.density:.4f}",
            f"{cost.parameters:,}",
            f"{cost.nonzero:,}",
            f"{cost.flops / 1e6:.2f}",
            f"{cost.effective_flops / 1e6:.2f}",
            f"{cost.bytes_on_disk / 1024:.0f}",
            f"{1000 * cost.latency:.1f}",
            f"{cost.peak_memory / 2**20:.1f}",
            f"{cost.throughput:.0f}",
        )
    return table


def cost_figure(cost: Efficiency) -> "matplotlib.figure.Figure":
    """Weights and FLOPs of each layer, and which of them are not zero."""
    # Not pyplot: it would pick a window system.
    from matplotlib.figure import Figure

    paths = [layer.path for layer in cost.layers]
    figure = Figure(figsize=(8, 1 + 0.22 * len(paths)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    columns = (
        ("weights", [x.weights for x in cost.layers], [x.nonzero for x in cost.layers]),
        ("FLOPs", [x.flops for x in cost.layers], [x.effective_flops for x in cost.layers]),
    )
    for panel, (title, everything, left) in zip(panels, columns, strict=True):
        panel.barh(paths, everything, color="0.85", label="all")
        panel.barh(paths, left, height=0.5, label="not zero")
        panel.set(title=title)
    panels[0].invert_yaxis()
    panels[1].legend(fontsize="small")
    return figure
