"""Square: a black-box attack by random search over squares."""

import dataclasses
import itertools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import norms
from prunejax.attacks import window_search
from prunejax.attacks.attack import Stage
from prunejax.attacks.random_search import Point, RandomSearch, RandomSearchState, flipped

# p is halved after each of these queries.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
TILES = 5  # a side, at the start in L2 and L1
SMALL = 4  # a window is small where so many of its size make an image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Square(RandomSearch):
    """Random search that changes one square window a query; needs no gradients.

    Linf: the window at a random place is moved to image +- eps, one random sign a channel; the
    start is vertical stripes of +-eps. L2 and L1: a bump with a positive and a negative half is
    added to a first window, which takes over the mass of a second one and what is left of the
    budget,

        nu <- eta_s rho / ||.|| + delta_1 / ||delta_1||,  rho in {-1, 1} a channel
        delta_2 <- 0,  delta_1 <- nu / ||nu|| * (mass of both windows and of what is left)

    and delta is scaled to eps (L2) or projected (L1); the start is a 5 x 5 grid of bumps. The
    window's side is s = sqrt(p H W), with p halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000
    and 8000 queries. Windows may touch every edge. In Linf they lie at the same places in all
    images of a run, as in the authors' code; in L2 and L1 every image has places of its own.

    Andriushchenko et al. (2020), "Square Attack: a query-efficient black-box adversarial attack via
    random search", algorithms 1 to 3; the L1 variant is Croce & Hein's (2021), "Mind the box:
    l1-APGD for sparse adversarial attacks on image classifiers". As in the authors' code, signs
    that would change nothing in Linf are drawn anew. A vector `[d]` is an image of d x 1 pixels.
    Where a square of p H W pixels does not fit, the window is a rectangle as wide as the shorter
    side.

    On CPUs what a small window in Linf does not reach is not computed again (`incremental`), from
    activations that are kept for all images under attack: where memory is short, a smaller
    `batch_size` needs less.

    On linear networks two restarts of 1,000 queries succeed at 1.25 times the least budget that is
    enough; on images in L2 at 1.5 times it where weights are independent from pixel to pixel, for
    no bump covers fewer than 3 x 3 pixels or has one sign only.

    Attributes:
      steps: proposals, a query each; 5000 as in AutoAttack.
      p_init: share of the pixels in the first windows, in (0, 1]; 0.8 as in AutoAttack.

    Raises:
      ValueError: a hyperparameter out of its range, an unknown loss, a norm that it does not
        measure in, or, when it runs, images of more than three axes.
    """

    norm: str = "linf"
    steps: int = 5000
    p_init: float = 0.8

    supported: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    reference: ClassVar[str] = "Andriushchenko et al. 2020; L1: Croce & Hein 2021"

    def __post_init__(self):
        super().__post_init__()
        self._numbers("p_init", within="(0, 1]")

    def sides(self, height: int, width: int) -> np.ndarray:
        """Heights and widths `[10, 2]` of the windows, in pixels, after 0, 1, ... 9 halvings."""
        area = self.p_init * height * width * 0.5 ** np.arange(len(HALVINGS) + 1)
        s, most = np.sqrt(area), (height, width)
        s = np.round(np.stack([np.maximum(s, area / width), np.maximum(s, area / height)], 1))
        if self.norm == "linf":
            return np.clip(s, 1, most).astype(int)
        return np.minimum(np.maximum(s, 3).astype(int) | 1, most)

    def halvings(self, step: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
        """How often p is halved before these steps; of their shape."""
        return (self.query_of_schedule(step)[..., None] > np.array(HALVINGS)).sum(-1)

    def window(self, step: jax.Array, height: int, width: int) -> tuple[jax.Array, jax.Array]:
        """Height and width of the windows, in pixels, after so many steps; integer scalars."""
        return tuple(jnp.array(self.sides(height, width))[self.halvings(jnp.asarray(step))])

    def stages(self, image_shape) -> tuple[Stage, ...]:
        """In Linf windows of a small size are a program of their own, with less to compute.

        On CPUs: elsewhere many small operations may take longer than few large ones.
        """
        height, width, _ = _grid(image_shape)
        number, steps = np.unique(self.halvings(np.arange(self.steps)), return_counts=True)
        sides = self.sides(height, width)[number]
        small = np.prod(sides, axis=1) * SMALL <= height * width
        planar = self.norm == "linf" and len(image_shape) == 3
        if not planar or not small.any() or jax.default_backend() != "cpu":
            return super().stages(image_shape)
        programs = [
            SmallWindows(**vars(self), size=tuple(map(int, size))) if is_small else self
            for size, is_small in zip(sides, small, strict=True)
        ]
        alike = itertools.groupby(zip(programs, steps, strict=True), key=lambda pair: pair[0])
        return tuple(Stage(program, int(sum(n for _, n in run))) for program, run in alike)

    def start(self, key, image, eps) -> Point:
        height, width, channels = _grid(image.shape)
        if self.norm == "linf":
            stripes = jax.random.rademacher(key, (1, width, channels), jnp.float32)
            delta = jnp.broadcast_to(eps * stripes, (height, width, channels))
            return Point(jnp.clip(image + delta.reshape(image.shape), 0, 1))

        key_sign, key_turn = jax.random.split(key)
        rows, columns = _tiles(height), _tiles(width)
        tiles = (max(rows.index) + 1, max(columns.index) + 1)
        sign = jax.random.rademacher(key_sign, (channels, *tiles), jnp.float32)
        turned = jax.random.bernoulli(key_turn, shape=tiles)
        of = np.ix_(rows.index, columns.index)
        bumps = [
            self.bump(rows.offset, columns.offset, (rows.side, columns.side), turn)
            for turn in (False, True)
        ]
        eta = jnp.where(turned[of], bumps[1], bumps[0])
        delta = (sign[(slice(None), *of)] * eta).reshape(channels, -1)
        return Point(self._within(eps * delta / norms.nonzero(self._length(delta)), image, eps))

    def propose(self, key, state: RandomSearchState) -> Point:
        return self._recolour(key, state) if self.norm == "linf" else self._move_mass(key, state)

    def _recolour(self, key, state) -> Point:
        shape = _grid(state.image.shape)
        size = self.window(state.step, *shape[:2])
        corner = self.corner(state.common, state.step, size, shape[:2])
        inside = _inside(*_offsets(corner, shape[:2]), size)[..., None]
        x = self.repaint(
            key, state.image.reshape(shape), state.best.x.reshape(shape), state.eps, inside
        )
        return Point(x.reshape(state.image.shape))

    def corner(self, common: jax.Array, step: jax.Array, size, shape) -> jax.Array:
        """`[2]` row and column of the window in an image `[H, W]` = `shape`, in Linf."""
        return _corner(jax.random.fold_in(common, step), size, shape)

    def repaint(self, key, image, best, eps, inside=True) -> jax.Array:
        """The best image `[h, w, C]`, or a window of it, moved to an edge of the ball in Linf.

        Args:
          key: of the signs.
          image, best: `[h, w, C]` the clean pixels and the best ones.
          eps: the budget.
          inside: what is moved, booleans that broadcast to the image.
        """
        key_sign, key_other = jax.random.split(key)

        def candidate(up):
            edge = jnp.clip(image + eps * jnp.where(up, 1.0, -1.0), 0, 1)
            return jnp.where(inside, edge, best)

        up = jax.random.bernoulli(key_sign, shape=image.shape[2:])
        same = jnp.all(candidate(up) == best)
        return candidate(jnp.where(same, flipped(key_other, up), up))

    def _move_mass(self, key, state) -> Point:
        height, width, channels = _grid(state.image.shape)
        key_first, key_second, key_sign, key_turn = jax.random.split(key, 4)
        size = self.window(state.step, height, width)
        rows, columns = _offsets(_corner(key_first, size, (height, width)), (height, width))
        first = _inside(rows, columns, size).ravel()
        other = _offsets(_corner(key_second, size, (height, width)), (height, width))
        second = _inside(*other, size).ravel()

        delta = _planes(state.best.x - state.image)
        left = jnp.maximum(state.eps**self._power - jnp.sum(self._mass(delta)), 0) / channels
        mass = left + self._mass(jnp.where(first | second, delta, 0.0))
        if self.norm == "l1":  # longer than the budget: what is too much, the projection takes
            mass = mass * channels

        sign = jax.random.rademacher(key_sign, (channels, 1), jnp.float32)
        eta = self.bump(rows, columns, size, jax.random.bernoulli(key_turn)).ravel()
        old = jnp.where(first, delta, 0.0)
        nu = sign * eta + old / norms.nonzero(self._mass(old) ** (1 / self._power))
        nu = nu * (mass / norms.nonzero(self._mass(nu))) ** (1 / self._power)
        delta = jnp.where(first, nu, jnp.where(second, 0.0, delta))
        return Point(self._within(delta, state.image, state.eps))

    def bump(self, rows, columns, size, turned) -> jax.Array:
        """eta_s `[H, W]`: two opposite bumps of equal length, together of length 1.

        A bump is sum_c 1 / (c + 1)^a over the rectangles |offset from the centre|_inf <= c that
        fit, a = 2 in L2 and 4 in L1.

        Args:
          rows, columns: `[H]` and `[W]` offsets from the window's corner; outside of it 0.
          size: height and width of the window, in pixels.
          turned: boolean scalar, whether the halves lie beside and not on top of each other.
        """
        longest = max(len(rows), len(columns)) + 2
        exponent = 4 if self.norm == "l1" else 2
        sums = jnp.array(np.cumsum(np.r_[0, 1 / np.arange(1, longest + 1.0) ** exponent]), "f4")
        (at_row, end_row, sign_row), (at_column, end_column, sign_column) = (
            _profile(sums, rows, size[0], ~jnp.asarray(turned)),
            _profile(sums, columns, size[1], jnp.asarray(turned)),
        )
        # The sums rise, so that of the larger offset is the larger of the two sums.
        height = jnp.maximum(end_row[:, None], end_column) - jnp.maximum(at_row[:, None], at_column)
        sign = sign_row[:, None] * sign_column
        halves = jnp.stack([jnp.where(sign > 0, height, 0), jnp.where(sign < 0, height, 0)])
        lengths = self._mass(halves.reshape(2, -1)) ** (1 / self._power)
        upper, lower = halves / norms.nonzero(lengths)[..., None]
        return (upper - lower) / jnp.sum(lengths > 0) ** (1 / self._power)

    @property
    def _power(self) -> int:
        return 2 if self.norm == "l2" else 1

    def _mass(self, planes: jax.Array) -> jax.Array:
        """Sum over each plane of |.|^2 in L2, of |.| in L1: `[C, HW]` -> `[C, 1]`."""
        return jnp.sum(jnp.abs(planes) ** self._power, axis=1, keepdims=True)

    def _length(self, planes: jax.Array) -> jax.Array:
        return jnp.sum(self._mass(planes)) ** (1 / self._power)

    def _within(self, planes: jax.Array, image: jax.Array, eps: jax.Array) -> jax.Array:
        if self.norm == "l2":
            planes = eps * planes / norms.nonzero(self._length(planes))
        delta = planes.T.reshape(image.shape)
        if self.norm == "l1":
            delta = norms.get("l1").project(delta, image, eps)
        return norms.get(self.norm).moved(image, delta, eps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallWindows(Square):
    """Square in Linf while its windows have one size, `size` pixels high and wide."""

    size: tuple[int, int]

    def advance(self, classifier, states, steps):
        return window_search.advance(self, classifier, states, steps, self.size)


class _Tiles(NamedTuple):
    """A side of the image cut into tiles: which tile, and where in it; -1 outside of all."""

    index: np.ndarray
    offset: np.ndarray
    side: int


def _tiles(length: int) -> _Tiles:
    side, number = max(length // TILES, 1), min(length, TILES)
    position = np.arange(length) - (length - side * number) // 2
    outside = (position < 0) | (position >= side * number)
    index = np.clip(position // side, 0, number - 1)
    return _Tiles(index, np.where(outside, -1, position % side), side)


def _grid(image_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Height, width and channels."""
    if len(image_shape) > 3:
        raise ValueError(
            f"images has shape [N, {', '.join(map(str, image_shape))}]; Square needs "
            "[N, H, W, C], [N, H, W] or [N, d]."
        )
    return (*image_shape, 1, 1)[:3]


def _planes(image: jax.Array) -> jax.Array:
    """The channels one after the other, `[C, HW]`."""
    return image.reshape(-1, _grid(image.shape)[2]).T


def _corner(key: jax.Array, size, shape: tuple[int, int]) -> jax.Array:
    """`[2]` where a window put at random begins."""
    return jax.random.randint(key, (2,), 0, jnp.array(shape) - jnp.stack(size) + 1)


def _offsets(corner: jax.Array, shape: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Of all rows `[H]` and columns `[W]` from the corner of a window."""
    return tuple(jnp.arange(length) - corner[axis] for axis, length in enumerate(shape))


def _inside(rows: jax.Array, columns: jax.Array, size) -> jax.Array:
    """`[H, W]` whether these offsets lie in the window."""
    row, column = (
        (offset >= 0) & (offset < side) for offset, side in zip((rows, columns), size, strict=True)
    )
    return row[:, None] & column


def _profile(sums: jax.Array, offset: jax.Array, side: jax.Array, halved: jax.Array):
    """One axis of a bump: the sums up to each offset and up to the end, and the sign there."""
    half = side // 2
    lower = halved & (offset >= half)
    start = jnp.where(lower, half, 0)
    part = jnp.where(halved, jnp.where(lower, side - half, half), side)
    distance = jnp.abs(offset - start - part // 2)
    inside = (offset >= 0) & (offset < side)
    sign = jnp.where(inside, jnp.where(lower, -1, 1), 0)
    return sums[distance], sums[part // 2 + 1], sign
