"""What is removed together: scores of weights become scores of units, kept units become masks.

Weights are laid out as in Flax and Haiku: `[..., inputs, outputs]`. By name:

    weight    one weight                                            ranks 2 to 8
    kernel    the slice of one input and one output, (k, k, 1, 1)   convolutions
    filter    all that leads to one output, (k, k, in, 1)           convolutions
    channel   all that comes from one input, (k, k, 1, out)         convolutions
    row       all that comes from one input, (1, out)               dense layers
    column    all that leads to one output, (in, 1)                 dense layers
    2:4       of 4 successive inputs of an output, 2 are kept       any N:M
    block4x4  4 successive inputs times 4 successive outputs        any size

Weights of other ranks are passed over. One of the right rank whose axes are no multiples of N:M's
groups or of the blocks is an error, for nobody would see that it stays dense. Whole residual blocks
are no units of a weight: `shrinking.lowest_blocks` chooses them, `shrinking.block_mask` masks them.

Successive inputs are those of axis -2: in a convolution, input channels at the same position of the
kernel, which is the order in which sparse tensor cores read them. Blocks likewise lie in the last
two axes. A unit's mask broadcasts against its weight; those of N:M and blocks have its full shape.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import names
from prunejax.pruning import selection
from prunejax.pruning.evidence import widened

Reduction = Callable[[jax.Array, tuple[int, ...]], jax.Array]
# The score of what has none: the lowest finite one.
NOT_A_NUMBER = float(np.finfo(np.float32).min)
_CONVOLUTIONS = (3, 4, 5)


def ordered(scores: jax.Array) -> jax.Array:
    """Scores as finite float32, with the lowest for NaN, which compares with nothing.

    So what is not a number goes first, but only after what is gone already; and what is infinite
    is no better than what a guard keeps.
    """
    scores, limits = scores.astype(jnp.float32), jnp.finfo(jnp.float32)
    return jnp.where(jnp.isnan(scores), NOT_A_NUMBER, jnp.clip(scores, limits.min, limits.max))


def _mean(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.mean(x, axes, keepdims=True)


def _sum(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sum(x, axes, keepdims=True)


def _l2(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(x), axes, keepdims=True))


def _max(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.max(x, axes, keepdims=True)


def _first(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    for axis in axes:
        x = jax.lax.index_in_dim(x, 0, axis)
    return x


def _any(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.any(x, axes, keepdims=True)


# The mean ranks units alike within a layer, and comparably across layers of different size
# (Merkle et al. 2021, global structured pruning). The first is for what is drawn at random: means
# of draws vary less in larger units, so that small ones would go first, and stay first.
AGGREGATES: dict[str, Reduction] = {
    "mean": _mean,
    "sum": _sum,
    "l2": _l2,
    "max": _max,
    "first": _first,
}


@dataclasses.dataclass(frozen=True)
class Granularity:
    """A way to cut a weight into units.

    Attributes:
      name: its name in configs.
      ranks: the ranks of the weights it applies to; others are left untouched.
    """

    name: str
    ranks: tuple[int, ...]

    # Whether every part of a weight has the same density, so that layers cannot differ.
    fixed_density: ClassVar[bool] = False

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Why a weight of this shape has no such units; None where it has."""
        if len(shape) not in self.ranks:
            return f"has rank {len(shape)}, not one of {self.ranks}"
        return None

    def require(self, path: str, shape: tuple[int, ...]) -> None:
        """Raises a ValueError for a weight that must not be passed over in silence."""

    def require_sparsity(self, sparsity: float, *, on_the_way: bool) -> None:
        """Raises a ValueError for a sparsity that the units cannot have, or not even in passing."""

    def reduce(self, x: jax.Array, reduction: Reduction) -> jax.Array:
        """One value for each unit, from an array of the weight's shape."""
        raise NotImplementedError

    def alive(self, kept: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The units of which a mask of the weight keeps anything."""
        return self.reduce(jnp.broadcast_to(kept, shape), _any)

    def distinguishes(self, by: tuple[int, ...], shape: tuple[int, ...]) -> bool:
        """Whether scores of the shape `by` can differ between a weight's units; one alone may."""
        axes = [axis for axis, n in enumerate(self.competing(shape)) if n > 1]
        return not axes or any(by[axis] > 1 for axis in axes)

    def competing(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """How many of the units that compete lie along each axis of a weight."""
        raise NotImplementedError

    def scores(
        self,
        weight_scores: jax.Array,
        kept: jax.Array,
        shape: tuple[int, ...],
        reduction: Reduction,
        finish: Callable[[jax.Array], jax.Array],
    ) -> jax.Array:
        """Scores of the units in float32: -inf for those that are gone, NaN next to them."""
        of_weights = jnp.broadcast_to(widened(weight_scores), shape)
        units = ordered(finish(self.reduce(of_weights, reduction)))
        return jnp.where(self.alive(kept, shape), units, -jnp.inf)

    def unit_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the scores of a weight of this shape."""
        return _unit_shape(self, shape)

    def expand(self, units: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The units' mask as one that broadcasts against the weight."""
        del shape
        return units

    def regrown(self, there: jax.Array, survivors: jax.Array, growth: jax.Array) -> jax.Array:
        """As many of a layer's units as are there: the survivors, and those of highest growth."""
        others = jnp.where(survivors, -jnp.inf, growth).ravel()
        missing = others.size - jnp.sum(there) + jnp.sum(survivors)
        return survivors | selection.keep_all_but_lowest(others, missing).reshape(there.shape)


@functools.cache  # schedules ask for it at each of their steps
def _unit_shape(granularity: Granularity, shape: tuple[int, ...]) -> tuple[int, ...]:
    weight = jax.ShapeDtypeStruct(shape, jnp.bool_)
    return jax.eval_shape(lambda x: granularity.reduce(x, _any), weight).shape


@dataclasses.dataclass(frozen=True)
class Slices(Granularity):
    """Units that span whole axes of a weight.

    Attributes:
      axes: the axes of a weight that a unit spans, from its rank.
    """

    axes: Callable[[int], tuple[int, ...]]

    def reduce(self, x: jax.Array, reduction: Reduction) -> jax.Array:
        axes = self.axes(x.ndim)
        return reduction(x, axes) if axes else x

    def competing(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.unit_shape(shape)


@dataclasses.dataclass(frozen=True)
class Blocks(Granularity):
    """Tiles of the last two axes.

    Attributes:
      size: successive inputs and outputs of a tile.
    """

    size: tuple[int, int]

    def require(self, path: str, shape: tuple[int, ...]) -> None:
        if any(n % block for n, block in zip(shape[-2:], self.size, strict=True)):
            raise ValueError(
                f"granularity {self.name!r} needs multiples of {self.size} as last two axes, but "
                f"{path!r} has shape {shape}; exclude it."
            )

    def reduce(self, x: jax.Array, reduction: Reduction) -> jax.Array:
        return reduction(x.reshape(self._tiled(x.shape)), (x.ndim - 1, x.ndim + 1))

    def competing(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        rows, columns = self.size
        return (*shape[:-2], shape[-2] // rows, shape[-1] // columns)

    def expand(self, units: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return jnp.broadcast_to(units, self._tiled(shape)).reshape(shape)

    def _tiled(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        (inputs, outputs), (rows, columns) = shape[-2:], self.size
        return (*shape[:-2], inputs // rows, rows, outputs // columns, columns)


@dataclasses.dataclass(frozen=True)
class NOfM(Granularity):
    """N:M sparsity: of each M successive inputs of an output the N best are kept.

    Inputs are on the last axis but one, as everywhere here; in kernels of attention, `[inputs,
    heads, features]`, those are the heads: exclude them, or have them as matrices.

    Weights are scored by their rank among their group, so that the lowest M - N of every group are
    the lowest of the layer, and of all layers. On the way there no group loses one more before all
    have lost as many, the structure decay of Kao et al. (2022), "Training recipe for N:M structured
    sparsity with decaying pruning mask"; between groups that have, the lowest score goes first.

    Attributes:
      keep: N.
      group: M.
    """

    keep: int
    group: int

    fixed_density: ClassVar[bool] = True

    def require(self, path: str, shape: tuple[int, ...]) -> None:
        if shape[-2] % self.group:
            raise ValueError(
                f"granularity {self.name!r} needs a multiple of {self.group} inputs, but {path!r} "
                f"of shape {shape} has {shape[-2]}; exclude it."
            )

    def require_sparsity(self, sparsity: float, *, on_the_way: bool) -> None:
        own = 1 - self.keep / self.group
        if not sparsity or abs(sparsity - own) < 1e-9 or (on_the_way and sparsity < own):
            return
        raise ValueError(
            f"sparsity is {sparsity}; granularity {self.name!r} ends at {own}, or stays at 0."
        )

    def reduce(self, x: jax.Array, reduction: Reduction) -> jax.Array:
        del reduction
        return x

    def competing(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (1,) * (len(shape) - 2) + (self.group, 1)

    def scores(self, weight_scores, kept, shape, reduction, finish):
        kept = jnp.broadcast_to(kept, shape)
        scores = ordered(finish(jnp.broadcast_to(widened(weight_scores), shape)))
        ranks = self._ranks(jnp.where(kept, scores, -jnp.inf))
        # Not -inf for what is gone: it would count against the other groups, and break theirs.
        return ranks + jnp.where(kept, scores / (1 + jnp.abs(scores)) / 4, -0.5)

    def regrown(self, there, survivors, growth):
        """Every group keeps its number."""
        lowest_kept = self.group - jnp.sum(self._grouped(there), axis=-2, keepdims=True)
        ranks = self._grouped(self._ranks(jnp.where(survivors, jnp.inf, growth)))
        return (ranks >= lowest_kept).reshape(there.shape)

    def _ranks(self, scores: jax.Array) -> jax.Array:
        """The rank of each weight among its group, from 0; ties go by index."""
        # The argsort of an argsort is the rank.
        order = jnp.argsort(self._grouped(scores), axis=-2, stable=True)
        return jnp.argsort(order, axis=-2).reshape(scores.shape)

    def _grouped(self, of_weights: jax.Array) -> jax.Array:
        *positions, inputs, outputs = of_weights.shape
        return of_weights.reshape(*positions, inputs // self.group, self.group, outputs)


WEIGHT = Slices("weight", tuple(range(2, 9)), axes=lambda rank: ())
KERNEL = Slices("kernel", _CONVOLUTIONS, axes=lambda rank: tuple(range(rank - 2)))
FILTER = Slices("filter", _CONVOLUTIONS, axes=lambda rank: tuple(range(rank - 1)))
CHANNEL = Slices("channel", _CONVOLUTIONS, axes=lambda rank: (*range(rank - 2), rank - 1))
ROW = Slices("row", (2,), axes=lambda rank: (1,))
COLUMN = Slices("column", (2,), axes=lambda rank: (0,))

GRANULARITIES: dict[str, Granularity] = {
    g.name: g for g in (WEIGHT, KERNEL, FILTER, CHANNEL, ROW, COLUMN)
}


def create(name: str) -> Granularity:
    """The granularity called `name`: a key of `GRANULARITIES`, "N:M" or "block{rows}x{columns}".

    Raises:
      ValueError: an unknown name, or numbers that make no sense, such as N > M.
    """
    if not isinstance(name, str):
        raise names.unknown("granularity", name, [*GRANULARITIES, "2:4", "block4x4"])
    if name in GRANULARITIES:
        return GRANULARITIES[name]
    if match := re.fullmatch(r"(\d+):(\d+)", name):
        keep, group = map(int, match.groups())
        if not 0 < keep < group:
            raise ValueError(f"granularity is {name!r}; N:M needs 0 < N < M.")
        return NOfM(name, WEIGHT.ranks, keep, group)
    if match := re.fullmatch(r"block(\d+)x(\d+)", name):
        rows, columns = map(int, match.groups())
        if not rows * columns:
            raise ValueError(f"granularity is {name!r}; blocks need sides of 1 or more.")
        return Blocks(name, WEIGHT.ranks, (rows, columns))
    raise names.unknown("granularity", name, [*GRANULARITIES, "2:4", "block4x4"])
