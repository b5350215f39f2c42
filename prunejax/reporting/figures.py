"""Security curves: robust accuracy as a function of the budget, one panel a norm."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prunejax.evaluation import Protocol, robust_accuracy

if TYPE_CHECKING:
    import matplotlib.figure

UNITS = {
    "linf": "largest change of a pixel value",
    "l2": "Euclidean length",
    "l1": "sum of changes",
    "l0": "changed features",
    "l0_pixels": "changed pixels",
}


def security_curves(
    records: Mapping[str, pa.Table], protocols: Sequence[Protocol]
) -> "matplotlib.figure.Figure":
    """One panel a protocol, one curve a network.

    A fixed-budget attack gives a point for each of its budgets; a minimum-norm attack gives the
    whole curve, 1 minus the distribution function of its distances.

    Args:
      records: by network's name.
      protocols: the attacks to draw, with the budgets at which to look.
    """
    # Not pyplot: it would pick a window system.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(protocols), 3.6), layout="constrained")
    panels = figure.subplots(1, len(protocols), sharey=True, squeeze=False)[0]
    for panel, protocol in zip(panels, protocols, strict=True):
        for name, table in records.items():
            own = table.filter(pc.equal(table["attack"], protocol.name))
            budgets, accuracies = _curve(own, protocol)
            if protocol.attack.minimum_norm:
                panel.step(budgets, accuracies, where="post", label=name)
            else:
                panel.plot(budgets, accuracies, marker="o", markersize=3, label=name)
        panel.axvline(protocol.stated, color="0.8", linewidth=1, zorder=0)
        panel.set(
            xlabel=f"{protocol.attack.norm} budget ({UNITS[protocol.attack.norm]})",
            title=protocol.name,
            ylim=(0, 1),
            xlim=(0, protocol.budgets[-1]),
        )
    panels[0].set_ylabel("robust accuracy")
    panels[-1].legend(fontsize="small")
    return figure


def _curve(table: pa.Table, protocol: Protocol) -> tuple[np.ndarray, np.ndarray]:
    budgets = np.asarray(protocol.budgets, float)
    if protocol.attack.minimum_norm:
        distances = np.sort(table["distance"].to_numpy())
        inside = distances[distances < budgets[-1]]
        budgets = np.unique(np.concatenate([[0.0], inside, budgets[-1:]]))
    return budgets, np.array([robust_accuracy(table, budget) for budget in budgets])
