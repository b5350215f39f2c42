"""What a norm can do, given the few functions in which it differs from the others."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from prunejax.norms.geometry import Array, as_float, nonzero, rescale

LOWER = 0.0  # the box every image lives in
UPPER = 1.0


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
        adds_up: whether every entry makes it longer, and so does the rounding of every entry.
        unit: what is counted, "features" or "pixels"; None where nothing is.
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
    adds_up: bool = False
    unit: str | None = None

    def distance(self, delta: Array) -> Array:
        """Length of a perturbation, a float32 scalar; l0: how many units are not exactly zero."""
        return self.length(self.flatten(as_float(delta)))

    def dual_distance(self, grad: Array) -> Array:
        """Dual norm of a gradient: max <grad, d> over ||d|| <= 1 without the box, a scalar.

        l0: the most that one unit gains when its entries move by at most 1.
        """
        return self.dual_length(self.flatten(as_float(grad)))

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
        delta, eps = as_float(delta), as_float(eps)
        corner = jnp.clip(delta, *_room(image))
        return self._within(self.shrink, delta, corner, eps)

    def moved(self, image: Array, delta: Array, eps: Array | float) -> Array:
        """`image + delta`, of a delta within budget and box, as an image within both.

        In L1 and L2 what float32 rounds in thousands of entries may add up to more than the budget
        allows: then each of them is one float32 nearer to the image.
        """
        x = jnp.clip(image + delta, 0, 1)
        if not self.adds_up:
            return x
        return jnp.where(self.distance(x - image) > eps, jnp.nextafter(x, image), x)

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
        grad, eps = as_float(grad), as_float(eps)
        return self._within(self.climb, rescale(grad), _corner(grad, image), eps)

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
        grad, gap = as_float(grad), as_float(gap)
        corner = self.flatten(_corner(jnp.where(gap < 0, -grad, grad), image))
        slope, reach = jnp.abs(self.flatten(rescale(grad))), jnp.abs(corner)
        gap = jnp.abs(gap) / nonzero(jnp.max(jnp.abs(grad)))  # in the units of `slope`
        worth = slope * reach
        gains = self.gains(slope, worth, gap)
        all_the_way = (gains >= worth) | (jnp.sum(worth) <= gap)
        magnitude = jnp.where(all_the_way, reach, gains / nonzero(slope))
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
        grad, image = as_float(grad), as_float(image)
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
        image, eps = as_float(image), as_float(eps)
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


def _room(image: Array) -> tuple[Array, Array]:
    """How far every entry can go down (<= 0) and up (>= 0) within the box."""
    image = as_float(image)
    return jnp.minimum(LOWER - image, 0.0), jnp.maximum(UPPER - image, 0.0)


def _corner(grad: Array, image: Array) -> Array:
    """As far as the box lets every entry go uphill."""
    low, high = _room(image)
    return jnp.where(grad > 0, high, jnp.where(grad < 0, low, 0.0))
