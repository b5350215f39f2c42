"""Accuracies, read off the records of an evaluation and nothing else."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prunejax.evaluation.protocol import Protocol, is_finite


def at_budget(table: pa.Table, budget: float | None) -> pa.Table:
    """The rows of one budget; None selects those of minimum-norm attacks."""
    if budget is None:
        return table.filter(pc.is_null(table["budget"]))
    return table.filter(pc.equal(table["budget"], pa.scalar(budget, pa.float32())))


def is_complete(table: pa.Table, protocol: Protocol, examples: int) -> bool:
    """Whether an attack's records hold that many examples at every budget of the protocol."""
    return all(len(at_budget(table, budget)) == examples for budget in protocol.runs_at)


def accuracies(table: pa.Table, protocols: Sequence[Protocol], examples: int) -> dict[str, Any]:
    """What records say of a network: the part of a summary that is computed from them alone.

    Args:
      table: all records of the network.
      protocols: the attacks; those whose records are not complete are left out.
      examples: how many were to be attacked.

    Returns:
      `clean_accuracy`, and `robust_accuracy`: for each attack its name, norm, stated budget, and
      the accuracy at that.
    """
    of = {p.name: table.filter(pc.equal(table["attack"], p.name)) for p in protocols}
    return {
        "clean_accuracy": clean_accuracy(table),
        "robust_accuracy": [
            {
                "attack": protocol.name,
                "norm": protocol.attack.norm,
                "budget": protocol.stated,
                "accuracy": robust_accuracy(of[protocol.name], protocol.stated),
            }
            for protocol in protocols
            if is_complete(of[protocol.name], protocol, examples)
        ],
    }


def clean_accuracy(table: pa.Table) -> float:
    """Share of the recorded examples that are classified right without an attack."""
    first = table.group_by("index").aggregate([("label", "min"), ("prediction", "min")])
    return float(np.mean(first["label_min"].to_numpy() == first["prediction_min"].to_numpy()))


def robust_accuracy(table: pa.Table, budget: float) -> float:
    """Share of the examples that one attack leaves right at `budget`.

    Args:
      table: records of one attack on one classifier.
      budget: for a minimum-norm attack any; otherwise one that it was run at.

    Raises:
      ValueError: no finite budget of at least 0, or a fixed-budget attack that was not run at it.
    """
    if not is_finite(budget) or budget < 0:
        raise ValueError(f"budget is {budget}; a finite number >= 0 is needed.")
    minimum_norm = at_budget(table, None)
    if len(minimum_norm):
        return float(np.mean(minimum_norm["distance"].to_numpy() > budget))
    rows = at_budget(table, budget)
    if not len(rows):
        tried = sorted(set(table["budget"].to_pylist()))
        raise ValueError(f"budget is {budget}; the attack was run at {tried}.")
    return float(1 - np.mean(rows["success"].to_numpy()))
