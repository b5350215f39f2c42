"""How many units each layer gives up.

An allocation splits the layers into groups that are ranked together and says how many units each
group loses. Counts are exact. "uniform" rounds layer by layer; all others remove
`round(sparsity * n)` of the n units in all.

ERK, IGQ and tables are families of densities d_l(u) that grow with one parameter u, which is chosen
such that the rounded counts have the right sum. Rounding what the *right* u gives, instead of
handing out remainders, makes each layer's count monotone in the sparsity, so that masks along a
schedule can be nested and exact at once.
"""

import fnmatch
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import jax

from prunejax import names
from prunejax.pruning.criteria.lamp import of_scores as lamp_of_scores


class Layer(NamedTuple):
    """What an allocation knows of a layer.

    Attributes:
      units: how many units it has.
      shape: of its weight.
    """

    units: int
    shape: tuple[int, ...]


Layers = Mapping[str, Layer]
Groups = list[tuple[tuple[str, ...], int]]
Family = Callable[[float], list[float]]
Table = tuple[tuple[str, float], ...]


class Allocation(NamedTuple):
    """How the units that go are shared among the layers.

    Attributes:
      groups: `({path: Layer}, sparsity) -> [(paths, units to remove)]`.
      comparable: the scores of one layer's units, of any shape and -inf for what is gone -> as they
        are ranked beside those of other layers, -inf again for what is gone.
      whole: the layers' paths -> those of the layers that lose nothing at any sparsity.
    """

    groups: Callable[[Layers, float], Groups]
    comparable: Callable[[jax.Array], jax.Array] = lambda scores: scores
    whole: Callable[[Collection[str]], frozenset[str]] = lambda paths: frozenset()

    def removal(self, layers: Layers, sparsity: float, *, guard: bool) -> Groups:
        """The groups; with room for one unit in each layer where guarded, see `guarded`."""
        groups = self.groups(layers, sparsity)
        return guarded(groups, layers, self.whole(layers)) if guard else groups


# How far a sparsity may be above that of a table whose densities are rounded to a few digits.
_TABLE_TOLERANCE = 1e-3


def uniform(layers: Layers, sparsity: float) -> Groups:
    """Each layer loses `round(sparsity * n)` of its own n units (Merkle et al. 2021, "local")."""
    return [((path,), round(sparsity * layer.units)) for path, layer in layers.items()]


def global_(layers: Layers, sparsity: float) -> Groups:
    """All layers are ranked together and lose `round(sparsity * n)` of their n units (ibid.)."""
    return [(tuple(layers), _total(layers, sparsity))]


def erk(layers: Layers, sparsity: float) -> Groups:
    """Erdos-Renyi-kernel densities, `erk_densities`, with exactly `round(sparsity * n)` removed."""
    return _groups(layers, _erk_family(layers), sparsity)


def igq(layers: Layers, sparsity: float) -> Groups:
    """Densities of ideal gas quotas, `igq_densities`, with `round(sparsity * n)` removed."""
    return _groups(layers, _igq_family(layers), sparsity)


# As "global", by the LAMP of the units' scores within their layer (Lee et al. 2021). With the
# criterion "magnitude" and single weights that is the paper's; scores of others stand for |w|.
LAMP = Allocation(global_, comparable=lamp_of_scores)

ALLOCATIONS: dict[str, Allocation] = {
    "uniform": Allocation(uniform),
    "global": Allocation(global_),
    "lamp": LAMP,
    "erk": Allocation(erk),
    "igq": Allocation(igq),
}


def from_table(table: Table) -> Allocation:
    """Densities by path pattern, `(("Conv_0/*", 1.0), ("Dense_*", 0.05))`.

    A layer has the density of the first pattern that matches its path; layers that none matches
    stay dense. At a sparsity below the table's own the layers are on their way there: layer l has
    lost t (1 - d_l) of its units, with the same t for all. Densities by hand, after looking at how
    sensitive each layer is, are those of Li et al. (2017).

    Raises (on use):
      ValueError: a pattern that matches no layer, or a sparsity above the table's own (by more than
        0.001, for tables of rounded numbers).
    """

    def groups(layers: Layers, sparsity: float) -> Groups:
        for pattern, _ in table:
            if not fnmatch.filter(layers, pattern):
                raise ValueError(
                    f"allocation has the pattern {pattern!r}, which matches none of the pruned "
                    f"layers {list(layers)}."
                )
        removed = [1 - _density_of(path, table) for path in layers]
        units = sum(layer.units for layer in layers.values())
        own = sum(r * layer.units for r, layer in zip(removed, layers.values(), strict=True))
        # At u = 0 every layer that may lose anything has lost all.
        prunable = sum(n.units for n, r in zip(layers.values(), removed, strict=True) if r > 0)
        if sparsity > own / units + _TABLE_TOLERANCE or _total(layers, sparsity) > prunable:
            raise ValueError(
                f"sparsity is {sparsity}, but the densities in allocation remove a share of "
                f"{own / units:.4g} at most; lower them or the sparsity."
            )
        furthest = 1 / min((r for r in removed if r > 0), default=1)
        return _groups(
            layers, lambda u: [max(0.0, 1 - (1 - u) * furthest * r) for r in removed], sparsity
        )

    def whole(paths: Collection[str]) -> frozenset[str]:
        return frozenset(path for path in paths if _density_of(path, table) == 1)

    return Allocation(groups, whole=whole)


def checked_table(table: Mapping[str, float] | Sequence[tuple[str, float]]) -> Table:
    """The table as a tuple of pairs.

    Raises:
      ValueError: no table of numbers, an empty one, or a density outside (0, 1].
    """
    try:
        items = table.items() if hasattr(table, "items") else table
        pairs = tuple((str(pattern), float(density)) for pattern, density in items)
    except (TypeError, ValueError):
        raise ValueError(
            f"allocation is {table!r}; it must be one of {', '.join(ALLOCATIONS)} or a table of "
            "path patterns and densities."
        ) from None
    if not pairs:
        raise ValueError("allocation is an empty table; name at least one layer.")
    for pattern, density in pairs:
        if not 0 < density <= 1:
            raise ValueError(
                f"allocation has density {density} for {pattern!r}; it must lie in (0, 1]."
            )
    return pairs


def create(allocation: str | Table) -> Allocation:
    """The allocation called so, or that of a table."""
    if isinstance(allocation, str):
        return names.lookup("allocation", allocation, ALLOCATIONS)
    return from_table(allocation)


def erk_densities(shapes: Mapping[str, tuple[int, ...]], density: float) -> dict[str, float]:
    """d_l = min(1, eps * sum(dims of l) / prod(dims of l)), with eps such that d n weights remain.

    Layers with few weights for their width stay denser. Mocanu et al. (2018); with the kernel's
    sizes among the dims, Evci et al. (2020), section 3.

    Args:
      shapes: of the weights, by path.
      density: share d of all n weights to keep, in (0, 1].
    """
    layers = {path: Layer(math.prod(shape), tuple(shape)) for path, shape in shapes.items()}
    return _densities(layers, _erk_family(layers), density)


def igq_densities(sizes: Mapping[str, int], density: float) -> dict[str, float]:
    """d_l = 1 / (1 + f n_l), with f such that d n of the n units remain.

    Ideal gas quotas (Vysogorets & Kempe 2021); FlyingBird's default (Chen et al. 2022).

    Args:
      sizes: units n_l of the layers, by path.
      density: share d of all units to keep, in (0, 1].
    """
    layers = {path: Layer(n, (n,)) for path, n in sizes.items()}
    return _densities(layers, _igq_family(layers), density)


def guarded(groups: Groups, layers: Layers, whole: frozenset[str] = frozenset()) -> Groups:
    """The groups with room for one unit in each layer; what one cannot lose, larger ones lose.

    The total stays what it was where units are left for it. Excess goes to the group with the most
    units first, whatever the sparsity, so that counts stay monotone along a schedule.

    Args:
      groups: paths and units to remove, as an allocation gives them.
      layers: by path.
      whole: paths of those that lose nothing.
    """
    limits = [sum(layers[path].units - 1 for path in paths) for paths, _ in groups]
    counts = [min(count, limit) for (_, count), limit in zip(groups, limits, strict=True)]
    excess = sum(count for _, count in groups) - sum(counts)
    taking = [i for i, (paths, _) in enumerate(groups) if not whole.issuperset(paths)]
    for i in sorted(taking, key=lambda i: -limits[i]):
        more = min(excess, limits[i] - counts[i])
        counts[i], excess = counts[i] + more, excess - more
    return [(paths, count) for (paths, _), count in zip(groups, counts, strict=True)]


def _erk_family(layers: Layers) -> Family:
    raw = [sum(layer.shape) / math.prod(layer.shape) for layer in layers.values()]
    return lambda u: [min(1.0, u / min(raw) * r) for r in raw]


def _igq_family(layers: Layers) -> Family:
    sizes = [layer.units for layer in layers.values()]

    def densities(u):
        if u == 1:
            return [1.0] * len(sizes)
        inverse = max(sizes) * u / (1 - u)  # 1 / f
        return [inverse / (inverse + n) for n in sizes]

    return densities


def _densities(layers: Layers, family: Family, density: float) -> dict[str, float]:
    if not 0 < density <= 1:
        raise ValueError(f"density is {density}; it must lie in (0, 1].")
    sizes = [layer.units for layer in layers.values()]

    def kept(u):
        return sum(d * n for d, n in zip(family(u), sizes, strict=True))

    _, u = _bracket(kept, density * sum(sizes))
    return dict(zip(layers, family(u), strict=True))


def _groups(layers: Layers, family: Family, sparsity: float) -> Groups:
    sizes = [layer.units for layer in layers.values()]
    target = sum(sizes) - _total(layers, sparsity)

    def counts(u):
        return [round(d * n) for d, n in zip(family(u), sizes, strict=True)]

    low, high = _bracket(lambda u: sum(counts(u)), target)
    kept, upper = counts(low), counts(high)
    # Where several layers gain a unit at the same u, the first ones do.
    for i in range(len(kept)):
        kept[i] += min(target - sum(kept), upper[i] - kept[i])
    return [((path,), n - k) for path, n, k in zip(layers, sizes, kept, strict=True)]


def _bracket(function: Callable[[float], float], target: float) -> tuple[float, float]:
    """Neighbouring floats of [0, 1] with function(low) <= target <= function(high)."""
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        if function(middle) < target:
            low = middle
        else:
            high = middle
    return low, high


def _total(layers: Layers, sparsity: float) -> int:
    return round(sparsity * sum(layer.units for layer in layers.values()))


def _density_of(path: str, table: Table) -> float:
    return next((d for pattern, d in table if fnmatch.fnmatchcase(path, pattern)), 1.0)
