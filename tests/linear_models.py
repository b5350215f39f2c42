"""Linear classifiers whose minimum adversarial perturbations are known exactly.

For logits W x + b and another class k, a perturbation d closes the gap to the label y as soon as
(w_k - w_y) . d >= z_y - z_k. What a budget r buys, max (w_k - w_y) . d over ||d|| <= r and x + d
in [0, 1], is a monotone function of r in closed form, so the smallest budget that pays the gap can
be read off it; the minimum over k is the answer. numpy in float64 only, and nothing of `prunejax`:
attacks, projections and reports are checked against these numbers.
"""

from typing import NamedTuple

import numpy as np


class LinearProblem(NamedTuple):
    """A linear classifier, logits = weights @ image.ravel() + bias, and images with its labels."""

    weights: np.ndarray  # [classes, features] float32
    bias: np.ndarray  # [classes] float32
    images: np.ndarray  # [examples, *shape] float32 in [0, 1]
    labels: np.ndarray  # [examples] int32, the argmax of the logits


def random_linear(
    seed: int, shape: tuple[int, ...], classes: int = 3, examples: int = 8
) -> LinearProblem:
    """A random problem that stays interesting in every norm.

    The bias puts the decision boundaries through the middle of the box, so that every class is
    predicted somewhere and the other classes can be reached; a fifth of the entries of each image
    lie exactly on the edge of the box, so that ignoring the box gives wrong answers; and the images
    nearest to a boundary are left out, so that the label does not hang on rounding.
    """
    rng = np.random.default_rng(seed)
    features = int(np.prod(shape))
    weights = rng.normal(size=(classes, features)) / np.sqrt(features)
    bias = -weights.sum(axis=1) / 2 + 0.05 * rng.normal(size=classes)
    weights, bias = weights.astype(np.float32), bias.astype(np.float32)

    images = rng.uniform(size=(2 * examples, features))
    edge = rng.uniform(size=images.shape) < 0.2
    images = np.where(edge, np.round(images), images).astype(np.float32)
    logits = images.astype(np.float64) @ weights.T.astype(np.float64) + bias
    best_two = np.sort(logits, axis=1)[:, -2:]
    far = np.sort(np.argsort(best_two[:, 0] - best_two[:, 1])[:examples])  # the largest margins
    images = images[far].reshape(examples, *shape)
    return LinearProblem(weights, bias, images, logits[far].argmax(axis=1).astype(np.int32))


def minimum_distance(W, b, x, label, norm, target=None) -> float:
    """The exact distance from x to the nearest point in the box that is not classified as `label`.

    min ||d|| with x + d in [0, 1] such that the logit of some other class is at least the label's.

    Args:
        W: weights, `[classes, features]`.
        b: bias, `[classes]`.
        x: one image in [0, 1], any shape with that many features.
        label: the class to leave.
        norm: "linf", "l2", "l1", "l0" or "l0_pixels" (a pixel is the last axis of a rank-3 image).
        target: if given, only this class's logit counts. It need not become the largest of all:
            with three classes or more this is a lower bound for a targeted attack.

    Returns:
        The distance; 0 if no step is needed; inf if no point of the box will do.
    """
    W, b, x = (np.asarray(array, np.float64) for array in (W, b, x))
    others = [k for k in range(len(W)) if k != label] if target is None else [target]
    logits = W @ x.ravel() + b
    channels = x.shape[-1] if norm == "l0_pixels" and x.ndim == 3 else 1
    return min(
        _smallest_budget(W[k] - W[label], logits[label] - logits[k], x.ravel(), norm, channels)
        for k in others
    )


def minimum_distances(problem: LinearProblem, norm: str, target=None) -> np.ndarray:
    """`minimum_distance` of every image of a problem, `[examples]`."""
    W, b, images, labels = problem
    return np.array(
        [minimum_distance(W, b, x, y, norm, target) for x, y in zip(images, labels, strict=True)]
    )


def _smallest_budget(w, gap, x, norm, channels) -> float:
    """Smallest r for which max w . d over ||d|| <= r and x + d in [0, 1] is at least gap."""
    if gap <= 0:
        return 0.0
    slope, reach = np.abs(w), np.where(w > 0, 1 - x, np.where(w < 0, x, 0.0))
    if np.sum(slope * reach) < gap:
        return np.inf
    if norm == "linf":  # every entry moves by min(r, reach)
        return _climb(slope, reach, gap)
    if norm == "l2":  # every entry moves by min(t slope, reach), stationarity with multiplier 1 / t
        ends = np.divide(reach, slope, out=np.zeros_like(reach), where=slope > 0)
        return float(np.linalg.norm(np.minimum(_climb(slope**2, ends, gap) * slope, reach)))
    if norm == "l1":  # the steepest entries first, each to its edge, the last one partly
        order = np.argsort(-slope)
        slope, reach = slope[order], reach[order]
        gains = np.cumsum(slope * reach)
        last = _first_at_least(gains, gap)
        before = gains[last] - slope[last] * reach[last]
        return float(np.sum(reach[:last]) + (gap - before) / slope[last])
    if norm in ("l0", "l0_pixels"):  # the units with the largest gains, all the way
        gains = np.sort((slope * reach).reshape(-1, channels).sum(axis=1))[::-1]
        return float(_first_at_least(np.cumsum(gains), gap) + 1)
    raise ValueError(f"norm must be linf, l2, l1, l0 or l0_pixels, got {norm!r}")


def _climb(slopes, ends, gap) -> float:
    """The t at which sum_i slopes_i min(t, ends_i), concave and piecewise linear, reaches gap."""
    order = np.argsort(ends)
    slopes, ends = slopes[order], ends[order]
    finished = np.cumsum(slopes * ends)  # by the entries that have come to their end
    moving = np.append(np.cumsum(slopes[::-1])[::-1][1:], 0.0)  # total slope of the others
    piece = _first_at_least(finished + ends * moving, gap)
    before = finished[piece - 1] if piece > 0 else 0.0
    return float((gap - before) / (moving[piece] + slopes[piece]))


def _first_at_least(rising, gap) -> int:
    # The last entry is known to be enough, but summed in another order may fall just short.
    return min(int(np.searchsorted(rising, gap)), len(rising) - 1)
