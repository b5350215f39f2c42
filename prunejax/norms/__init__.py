"""The norms in which a perturbation is measured, and all the geometry that attacks need from them.

    norm = norms.get("l1")
    delta = norm.random_start(key, image, eps)
    delta = norm.project(delta + step * norm.direction(grad, image + delta), image, eps)

Everything is written for one example: `image`, `delta` and `grad` share any one shape without a
batch axis; batches, and one budget an example, come from `jax.vmap`. All arithmetic is float32.

Ball and box are both symmetric in the sense that an optimal perturbation never leaves the orthant
of the vector it comes from, so each norm only has to say what it does with magnitudes: how much of
`reach >= 0` (the way to the box, per coordinate) is used. Arrays are flattened because on a CPU the
same bisection over image-shaped arrays took 12 to 28 times as long.
"""

from prunejax import names
from prunejax.norms.geometry import largest
from prunejax.norms.l0 import L0, L0_PIXELS
from prunejax.norms.l1 import L1
from prunejax.norms.l2 import L2
from prunejax.norms.linf import LINF
from prunejax.norms.norm import LOWER, UPPER, Norm

__all__ = ["LOWER", "NORMS", "UPPER", "Norm", "get", "largest"]

NORMS: dict[str, Norm] = {norm.name: norm for norm in (LINF, L2, L1, L0, L0_PIXELS)}


def get(name: str) -> Norm:
    """The norm called `name`: "linf", "l2", "l1", "l0" (every entry counts) or "l0_pixels".

    A pixel is the last axis of an image of rank 3 or more, however many of its channels change;
    in arrays of lower rank every entry is its own pixel.

    Raises:
        ValueError: if there is no such norm.
    """
    return names.lookup("norm", name, NORMS)
