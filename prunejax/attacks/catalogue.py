"""What attacks there are, as a table made from the registry."""

from collections.abc import Mapping

from prunejax import norms
from prunejax.attacks.attack import Attack


def markdown(registry: Mapping[str, type[Attack]]) -> str:
    """A Markdown table: name, kind, norms, what L0 counts, file, reference."""
    rows = [
        "| attack | kind | norms | L0 counts | file | reference |",
        "|---|---|---|---|---|---|",
    ]
    for name, attack in registry.items():
        counts = " or ".join(filter(None, (norms.get(norm).unit for norm in attack.supported)))
        file = attack.__module__.rpartition(".")[2] + ".py"
        cells = (
            f"`{name}`", kind(attack), ", ".join(attack.supported), counts, file, attack.reference,
        )  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def kind(attack: type[Attack]) -> str:
    """What it looks for, and what it needs of the network."""
    goal = "minimum norm" if attack.minimum_norm else "fixed budget"
    return f"{goal}, {'gradient' if attack.uses_gradients else 'black box'}"
