"""How many units each layer gives up.

An allocation splits the layers into groups that are ranked together and says how many units each
group loses: `{path: number of units}, sparsity -> [(paths, units to remove)]`.
"""

from collections.abc import Callable, Mapping

Groups = list[tuple[tuple[str, ...], int]]
Allocation = Callable[[Mapping[str, int], float], Groups]


def uniform(units: Mapping[str, int], sparsity: float) -> Groups:
    """Each layer loses `round(sparsity * n)` of its own n units."""
    return [((path,), round(sparsity * n)) for path, n in units.items()]


def global_(units: Mapping[str, int], sparsity: float) -> Groups:
    """All layers are ranked together; `round(sparsity * n)` of the n units in all are removed."""
    return [(tuple(units), round(sparsity * sum(units.values())))]


ALLOCATIONS: dict[str, Allocation] = {"uniform": uniform, "global": global_}
