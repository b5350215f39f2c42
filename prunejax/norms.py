"""The norms in which a perturbation is measured, and all the geometry that attacks need from them.

    norm = norms.get("l1")
    delta = norm.random_start(key, image, eps)
    delta = norm.project(delta + step * norm.direction(grad, image + delta), image, eps)

Everything is written for one example: `image`, `delta` and `grad` share any one shape without a
batch axis; batches, and one budget an example, come from `jax.vmap`. All arithmetic is float32.

Two ideas carry the file. First, ball and box are both symmetric in the sense that an optimal
perturbation never leaves the orthant of the vector it comes from, so each norm only has to say
what it does with magnitudes: how much of `reach >= 0` (the way to the box, per coordinate) is
used. Second, each optimum lies on a path governed by one Lagrange multiplier along which the length
falls monotonically. Where all entries grow in fixed proportions until they meet the box, it is
found by filling (`_fill_evenly`); else it is bisected over the *bit patterns* of float32: 31
halvings end at two neighbouring floats whatever the scale. No projection sorts: on a CPU one sort
of the 2 d breakpoints took 25 to 30 times as long as the whole bisection. Arrays are flattened
because there the same bisection over image-shaped arrays took 12 to 28 times as long.
"""

import dataclasses
import difflib
from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array

LOWER = 0.0  # the box every image lives in
UPPER = 1.0

# Bit patterns of the smallest normal and the largest finite float32: positive floats are ordered
# as their bit patterns are.
_SMALLEST = 0x00800000
_LARGEST = 0x7F7FFFFF


@dataclasses.dataclass(frozen=True)
class Norm:
    """One norm: a name and the functions in which it differs from the others.

    Use the methods; they take and give arrays in the image's shape. The fields below are what a
    new norm has to supply. They work on flat arrays: `[d]`, or `[units, channels]` where units
    are counted. Instances are hashable and may be static arguments of `jax.jit`.

    Attributes:
        name: the key in `NORMS`.
        dual: name of the dual norm; where units are counted, of the dual of the convex relaxation.
        flatten: image-shaped array -> flat array.
        length: flat perturbation -> its norm, a scalar.
        dual_length: flat gradient -> its dual norm, a scalar.
        shrink: (magnitude, reach, eps) -> the magnitudes closest to `magnitude` that are at most
            `reach` and have length eps. Needed only where `reach` is longer than eps > 0.
        climb: (slope, reach, eps) -> likewise, those with the largest inner product with `slope`.
        gains: (slope, worth, gap) -> the products slope * magnitude, each at most worth =
            slope * reach, of the shortest magnitudes for which they add up to gap, which is at most
            the sum of worth. None where units are counted.
        steepest: (gradient, mask of the entries that the box lets move) -> direction.
        sample: (key, image, eps) -> random perturbation, image-shaped, not yet projected.
    """

    name: str
    dual: str
    flatten: Callable[[Array], Array]
    length: Callable[[Array], Array]
    dual_length: Callable[[Array], Array]
    shrink: Callable[[Array, Array, Array], Array]
    climb: Callable[[Array, Array, Array], Array]
    gains: Callable[[Array, Array, Array], Array] | None
    steepest: Callable[[Array, Array], Array]
    sample: Callable[[Array, Array, Array], Array]

    def distance(self, delta: Array) -> Array:
        """Length of a perturbation, a float32 scalar; l0: how many units are not exactly zero."""
        return self.length(self.flatten(_float(delta)))

    def dual_distance(self, grad: Array) -> Array:
        """Dual norm of a gradient: max <grad, d> over ||d|| <= 1 without the box, a scalar.

        l0: the most that one unit gains when its entries move by at most 1.
        """
        return self.dual_length(self.flatten(_float(grad)))

    def project(self, delta: Array, image: Array, eps: Array | float) -> Array:
        """The closest perturbation within budget and box (Euclidean projection).

        argmin ||d - delta||_2 over d with ||d|| <= eps and image + d in [0, 1], exact to float32
        rounding: on the intersection, not on ball and box in turn.

            linf       d = clip(delta, +-eps and box)
            l2         |d| = min(|delta| / m, reach), ||d||_2 = eps
            l1         |d| = clip(|delta| - m, 0, reach), ||d||_1 = eps (soft threshold)
            l0         the floor(eps) units with the largest sum(delta^2 - violation^2), moved as
                       far as the box lets them; the rest exactly 0; ties go to the lower index

        where reach is |delta| after clipping to the box and m >= 0 the multiplier. For l1 this is
        the projection of Croce & Hein 2021 ("Mind the box", arXiv 2103.01208), for l0 of Croce &
        Hein 2019 ("Sparse and imperceivable adversarial attacks", arXiv 1909.05040).

        Args:
            delta: any finite perturbation.
            image: the clean image, in [0, 1].
            eps: budget >= 0 in this norm; may be traced. inf means the box only.

        Returns:
            The projection; `delta` itself, bit for bit, if it is feasible; exact zeros if eps = 0.
        """
        delta, eps = _float(delta), _float(eps)
        corner = jnp.clip(delta, *_room(image))
        return self._within(self.shrink, delta, corner, eps)

    def maximizer(self, grad: Array, image: Array, eps: Array | float) -> Array:
        """The perturbation within budget and box that a linear loss likes best.

        argmax <grad, d> over d with ||d|| <= eps and image + d in [0, 1], exact to float32
        rounding. FGSM is one call of this.

            linf       eps * sign(grad), clipped to the box
            l2         |d| = min(|grad| / m, reach), ||d||_2 = eps (water filling)
            l1         entries by falling |grad|, each to its box edge, until the budget is used;
                       entries with equal |grad| share the last of it
            l0         the floor(eps) units with the largest |grad| . reach, to their box corners

        Args:
            grad: gradient at the image; its scale does not matter.
            image: the clean image, in [0, 1].
            eps: budget >= 0 in this norm; may be traced.

        Returns:
            The perturbation; 0 wherever grad is 0; exact zeros if eps = 0.
        """
        grad, eps = _float(grad), _float(eps)
        return self._within(self.climb, _rescale(grad), _corner(grad, image), eps)

    def reach_hyperplane(self, grad: Array, image: Array, gap: Array | float) -> Array:
        """The shortest perturbation in the box that changes a linear function by `gap`.

        argmin ||d|| over d with <grad, d> = gap and image + d in [0, 1], exact to float32
        rounding; where the box does not allow that much, the corner that comes closest. These are
        the projections of Croce & Hein (2020), "Minimally distorted adversarial examples with a
        fast adaptive boundary attack", section 2, without their sorts.

            linf       |d| = min(t, reach)
            l2         |d| = min(t |grad|, reach)
            l1         entries by falling |grad|, each to its box edge, until the gap is closed;
                       entries with equal |grad| share the last of it

        Args:
            grad: gradient of the linear function.
            image: a point in [0, 1].
            gap: the change that is wanted, of either sign; may be traced.

        Returns:
            The perturbation; 0 wherever grad is 0; exact zeros if gap = 0.

        Raises:
            ValueError: in l0 and l0_pixels, whose units move all the way or not at all.
        """
        if self.gains is None:
            raise ValueError(f"norm is {self.name!r}; hyperplanes are reached in linf, l2 and l1.")
        grad, gap = _float(grad), _float(gap)
        corner = self.flatten(_corner(jnp.where(gap < 0, -grad, grad), image))
        slope, reach = jnp.abs(self.flatten(_rescale(grad))), jnp.abs(corner)
        gap = jnp.abs(gap) / _nonzero(jnp.max(jnp.abs(grad)))  # in the units of `slope`
        worth = slope * reach
        gains = self.gains(slope, worth, gap)
        all_the_way = (gains >= worth) | (jnp.sum(worth) <= gap)
        magnitude = jnp.where(all_the_way, reach, gains / _nonzero(slope))
        return (jnp.sign(corner) * jnp.where(gap > 0, magnitude, 0.0)).reshape(grad.shape)

    def direction(self, grad: Array, image: Array) -> Array:
        """Direction of steepest ascent for projected gradient steps.

            linf       sign(grad)
            l2         grad / ||grad||_2
            l1         SLIDE (Tramer & Boneh 2019, arXiv 1904.13000): sign(grad) / k on the k
                       entries whose |grad| reaches its 0.99 quantile, both taken over the
                       entries that the box does not stop already
            l0         grad / ||grad||_1 (PGD0)

        Args:
            grad: gradient of the loss to increase; any scale.
            image: the point at which it was taken (image + delta), in [0, 1].

        Returns:
            A direction of length 1 (l0: of L1 length 1); exact zeros for a zero gradient (on
            backends that flush subnormal numbers, for those too) and, in l1, where the box stops
            every entry.
        """
        grad, image = _float(grad), _float(image)
        stopped = ((grad > 0) & (image >= UPPER)) | ((grad < 0) & (image <= LOWER))
        return self.steepest(self.flatten(grad), self.flatten(~stopped)).reshape(grad.shape)

    def random_start(self, key: Array, image: Array, eps: Array | float) -> Array:
        """A random perturbation within budget and box.

        linf, l2, l1: uniform in the ball, then projected. l0: from the clean to a uniformly random
        image, then projected (PGD0), so floor(eps) units move.

        Args:
            key: a `jax.random.key`.
            image: the clean image, in [0, 1].
            eps: finite budget >= 0 in this norm; may be traced.

        Returns:
            The perturbation; exact zeros if eps = 0.
        """
        image, eps = _float(image), _float(eps)
        return self.project(self.sample(key, image, eps), image, eps)

    def _within(self, rule, vector: Array, corner: Array, eps: Array) -> Array:
        """`corner` where it is within budget, else what `rule` makes of it in magnitudes."""
        if eps.ndim:
            raise ValueError(f"eps must be a scalar, got shape {eps.shape}; vmap over the examples")
        flat_vector, flat_corner = self.flatten(vector), self.flatten(corner)
        magnitude = rule(jnp.abs(flat_vector), jnp.abs(flat_corner), eps)
        partial = jnp.where(eps > 0, jnp.sign(flat_corner) * magnitude, 0.0)
        flat = jnp.where(self.length(flat_corner) <= eps, flat_corner, partial)
        return flat.reshape(vector.shape)


# -- shared helpers --------------------------------------------------------------------------------


def _float(array) -> Array:
    return jnp.asarray(array, jnp.float32)


def _room(image: Array) -> tuple[Array, Array]:
    """How far every entry can go down (<= 0) and up (>= 0) within the box."""
    image = _float(image)
    return jnp.minimum(LOWER - image, 0.0), jnp.maximum(UPPER - image, 0.0)


def _corner(grad: Array, image: Array) -> Array:
    """As far as the box lets every entry go uphill."""
    low, high = _room(image)
    return jnp.where(grad > 0, high, jnp.where(grad < 0, low, 0.0))


def _nonzero(scalar: Array) -> Array:
    """A divisor that is safe where the numerator vanishes with it."""
    return jnp.where(scalar > 0, scalar, 1.0)


def _rescale(vector: Array) -> Array:
    """`vector` over its largest magnitude, so that squares of tiny gradients do not underflow."""
    largest = jnp.max(jnp.abs(vector))
    return jnp.where(largest > 0, vector / _nonzero(largest), 0.0)


def _positive(bits: Array) -> Array:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _first(holds: Callable[[Array], Array], low: int, high: int) -> Array:
    """The smallest integer in (low, high] from which on `holds`; `high` if there is none below."""

    def halve(_, bracket):
        low, high = bracket
        middle = high - (high - low) // 2  # above low also when nothing is left to halve
        found = holds(middle)
        return jnp.where(found, low, middle), jnp.where(found, middle, high)

    steps = (high - low - 1).bit_length()
    return jax.lax.fori_loop(0, steps, halve, (jnp.int32(low), jnp.int32(high)))[1]


def _at_budget(path: Callable, length: Callable, eps: Array) -> Array:
    """The point of length eps on a path of magnitudes that shrink as the multiplier grows.

    Between neighbouring floats the multiplier can no longer tell points apart, but the path can
    still jump by more than rounding (many entries moving together, ties): there it is blended.
    """
    bits = _first(lambda bits: length(path(_positive(bits))) <= eps, _SMALLEST, _LARGEST)
    inner, outer = path(_positive(bits)), path(_positive(bits - 1))
    inside = length(inner)
    share = (eps - inside) / _nonzero(length(outer) - inside)
    return inner + jnp.clip(share, 0.0, 1.0) * (outer - inner)


def _fill_evenly(rate: Array, limit: Array, total: Array) -> Array:
    """min(t rate, limit) with the t >= 0 at which that adds up to `total`, or all of `limit`.

    Entries that reach their limit leave the others a larger share, which can only make more of them
    reach theirs: a few rounds, and exact once no more do. (Newton's method from t = 0.)
    """

    def share(full):
        left = total - jnp.sum(jnp.where(full, limit, 0.0))
        return left / _nonzero(jnp.sum(jnp.where(full, 0.0, rate)))

    def more(carry):
        full, before = carry
        return jnp.any(full != before)

    def fill(carry):
        full, _ = carry
        return full | (share(full) * rate >= limit), full

    none = limit <= 0
    full, _ = jax.lax.while_loop(more, fill, fill((none, none)))
    return jnp.where(full, limit, share(full) * rate)


def largest(gain: Array, count: Array) -> Array:
    """Mask of the `count` largest entries of gain >= 0 (`[units]`), the first among equals."""

    def halve(_, carry):
        low, high, gain = carry
        middle = high - (high - low) // 2
        above = gain > _positive(middle)
        few = jnp.sum(above) <= count
        # What is decided is marked. In a loop's state gain is stored: where XLA computes it anew
        # for each use, rounded otherwise, more than `count` are chosen.
        gain = jnp.where(few & above, jnp.inf, jnp.where(few | above, gain, -jnp.inf))
        return jnp.where(few, low, middle), jnp.where(few, middle, high), gain

    start = jnp.int32(_SMALLEST), jnp.int32(_LARGEST), gain
    halvings = (_LARGEST - _SMALLEST - 1).bit_length()
    _, bits, gain = jax.lax.fori_loop(0, halvings, halve, start)
    above, tied = gain == jnp.inf, gain == _positive(bits)
    index, places = jnp.arange(gain.size), count - jnp.sum(above)
    end = _first(lambda end: jnp.sum(tied & (index < end)) >= places, -1, gain.size)
    return above | (tied & (index < end))


# -- linf ------------------------------------------------------------------------------------------


def _cap(magnitude: Array, reach: Array, eps: Array) -> Array:
    return jnp.minimum(reach, eps)


def _linf_sample(key: Array, image: Array, eps: Array) -> Array:
    return eps * jax.random.uniform(key, image.shape, minval=-1.0, maxval=1.0)


def _sign(grad: Array, free: Array) -> Array:
    return jnp.sign(grad)


def _linf(vector: Array) -> Array:
    return jnp.max(jnp.abs(vector))


# -- l2 --------------------------------------------------------------------------------------------


def _l2(vector: Array) -> Array:
    return _linf(vector) * jnp.sqrt(jnp.sum(_rescale(vector) ** 2))


def _water_fill(magnitude: Array, reach: Array, eps: Array) -> Array:
    # In units of the largest entry and of eps, so that squares do not underflow.
    squares = _fill_evenly(_rescale(magnitude) ** 2, (reach / _nonzero(eps)) ** 2, jnp.float32(1))
    return jnp.minimum(eps * jnp.sqrt(squares), reach)


def _proportional_gains(slope: Array, worth: Array, gap: Array) -> Array:
    return _fill_evenly(slope**2, worth, gap)


def _l2_unit(grad: Array, free: Array) -> Array:
    grad = _rescale(grad)
    return grad / _nonzero(_l2(grad))


def _l2_sample(key: Array, image: Array, eps: Array) -> Array:
    # All but two coordinates of a uniform point on the sphere are uniform in the ball.
    gaussian = jax.random.normal(key, (image.size + 2,))
    return eps * (gaussian / _l2(gaussian))[:-2].reshape(image.shape)


# -- l1 --------------------------------------------------------------------------------------------


def _l1(vector: Array) -> Array:
    return jnp.sum(jnp.abs(vector))


def _soft_threshold(magnitude: Array, reach: Array, eps: Array) -> Array:
    return _at_budget(lambda m: jnp.clip(magnitude - m, 0.0, reach), jnp.sum, eps)


def _fill_by_slope(slope: Array, reach: Array, eps: Array) -> Array:
    return _at_budget(lambda m: jnp.where(slope > m, reach, 0.0), jnp.sum, eps)


def _slide(grad: Array, free: Array) -> Array:
    most = 1 + (grad.size - 1) // 100  # entries from the 0.99 quantile up, were all of them free
    wanted = 1 + (jnp.sum(free) - 1) // 100
    slope = jnp.where(free, jnp.abs(grad), 0.0)
    quantile = jax.lax.top_k(slope, most)[0][wanted - 1]
    chosen = (slope >= quantile) & (slope > 0)
    return jnp.where(chosen, jnp.sign(grad), 0.0) / jnp.maximum(jnp.sum(chosen), 1)


def _l1_sample(key: Array, image: Array, eps: Array) -> Array:
    # All but one coordinate of a uniform point on the cross-polytope are uniform in the ball.
    laplace = jax.random.laplace(key, (image.size + 1,))
    return eps * (laplace / _l1(laplace))[:-1].reshape(image.shape)


# -- l0: features and pixels, arrays are [units, channels] -----------------------------------------


def _features(array: Array) -> Array:
    return array.reshape(-1, 1)


def _pixels(array: Array) -> Array:
    return array.reshape(-1, array.shape[-1]) if array.ndim >= 3 else _features(array)


def _l0(units: Array) -> Array:
    return jnp.sum(jnp.any(units != 0, axis=1)).astype(jnp.float32)


def _l0_dual(units: Array) -> Array:
    return jnp.max(jnp.sum(jnp.abs(units), axis=1))


def _keep_near(magnitude: Array, reach: Array, eps: Array) -> Array:
    # magnitude^2 - (magnitude - reach)^2, written without cancellation
    return _keep_steep(2.0 * magnitude - reach, reach, eps)


def _keep_steep(slope: Array, reach: Array, eps: Array) -> Array:
    kept = largest(jnp.sum(slope * reach, axis=1), jnp.floor(eps))
    return jnp.where(kept[:, None], reach, 0.0)


def _l1_unit(grad: Array, free: Array) -> Array:
    grad = _rescale(grad)
    return grad / _nonzero(_l1(grad))


def _l0_sample(key: Array, image: Array, eps: Array) -> Array:
    return jax.random.uniform(key, image.shape, minval=LOWER, maxval=UPPER) - image


# -- the table -------------------------------------------------------------------------------------

NORMS: dict[str, Norm] = {
    norm.name: norm
    for norm in (
        Norm(
            name="linf",
            dual="l1",
            flatten=jnp.ravel,
            length=_linf,
            dual_length=_l1,
            shrink=_cap,
            climb=_cap,
            gains=_fill_evenly,
            steepest=_sign,
            sample=_linf_sample,
        ),
        Norm(
            name="l2",
            dual="l2",
            flatten=jnp.ravel,
            length=_l2,
            dual_length=_l2,
            shrink=_water_fill,
            climb=_water_fill,
            gains=_proportional_gains,
            steepest=_l2_unit,
            sample=_l2_sample,
        ),
        Norm(
            name="l1",
            dual="linf",
            flatten=jnp.ravel,
            length=_l1,
            dual_length=_linf,
            shrink=_soft_threshold,
            climb=_fill_by_slope,
            gains=_fill_by_slope,
            steepest=_slide,
            sample=_l1_sample,
        ),
        Norm(
            name="l0",
            dual="linf",
            flatten=_features,
            length=_l0,
            dual_length=_l0_dual,
            shrink=_keep_near,
            climb=_keep_steep,
            gains=None,
            steepest=_l1_unit,
            sample=_l0_sample,
        ),
    )
}
NORMS["l0_pixels"] = dataclasses.replace(NORMS["l0"], name="l0_pixels", flatten=_pixels)


def get(name: str) -> Norm:
    """The norm called `name`: "linf", "l2", "l1", "l0" (every entry counts) or "l0_pixels".

    A pixel is the last axis of an image of rank 3 or more, however many of its channels change;
    in arrays of lower rank every entry is its own pixel.

    Raises:
        ValueError: if there is no such norm.
    """
    if name in NORMS:
        return NORMS[name]
    nearest = difflib.get_close_matches(str(name).lower(), NORMS, n=1, cutoff=0.0)[0]
    valid = ", ".join(NORMS)
    raise ValueError(f"norm must be one of {valid}, got {name!r}; did you mean {nearest!r}?")
