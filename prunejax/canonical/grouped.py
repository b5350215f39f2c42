"""Convolutions of groups, which XLA's CPU code makes 5 to 700 times slower than need be.

Depthwise convolutions have them, `jax.vmap` over weights makes them, and so do the gradients of
both. Here each group becomes a convolution by itself; where a group has a single input, as in a
depthwise convolution, there is nothing to sum but the taps of the kernel, entry by entry.
"""

import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax

# Programs grow with the number of groups, or of taps; of many taps, or of many features to an
# input, as in the gradients of single examples, XLA's code is the faster.
_MOST_GROUPS, _MOST_TAPS, _MOST_FEATURES = 64, 49, 4


def applies(lhs, rhs, **params):
    """Groups on a CPU, where there is a faster form."""
    return _form(lhs, rhs, **params) is not None


def convolve(lhs, rhs, inner, **params):
    """Groups one by one, each by `inner`, or tap by tap."""
    return _form(lhs, rhs, **params)(lhs, rhs, inner, **params)


def _form(lhs, rhs, *, feature_group_count, batch_group_count, **params):
    groups, outputs = feature_group_count * batch_group_count, _outputs(lhs, rhs, **params)
    if groups == 1 or jax.default_backend() != "cpu" or 0 in (lhs.size, rhs.size, *outputs):
        return None
    few = rhs.shape[-1] <= _MOST_FEATURES * groups and jnp.issubdtype(lhs.dtype, jnp.floating)
    if feature_group_count > 1 and rhs.shape[-2] == 1:
        return _depthwise if few and math.prod(rhs.shape[:-2]) <= _MOST_TAPS else None
    if 1 < batch_group_count == len(lhs) and few and math.prod(outputs) <= _MOST_TAPS:
        return _depthwise_gradient
    return _one_by_one if groups <= _MOST_GROUPS else None


def _one_by_one(lhs, rhs, inner, *, feature_group_count, batch_group_count, **params):
    """With groups of features each reads its part of the inputs, with groups of images of these.

    The latter are gradients with respect to grouped kernels. Either way a group makes its part of
    the features.
    """
    groups, axis = max((feature_group_count, -1), (batch_group_count, 0))
    parts = zip(jnp.split(lhs, groups, axis), jnp.split(rhs, groups, -1), strict=True)
    once = {"feature_group_count": 1, "batch_group_count": 1}
    return jnp.concatenate([inner(*part, **once, **params) for part in parts], -1)


def _depthwise(lhs, rhs, inner, **params):
    """y[n, p, c] = sum over t of x[n, stride p + dilation t, c] w[t, c]."""
    del inner
    outputs, dtype = _outputs(lhs, rhs, **params), _precise(lhs)
    x = _each_for(rhs.shape[-1], _with_zeros(lhs, **params))
    total = jnp.zeros((len(x), *outputs, x.shape[-1]), dtype)
    for tap in itertools.product(*map(range, rhs.shape[:-2])):
        seen = _every(x, tap, params["rhs_dilation"], outputs, params["window_strides"])
        total += seen.astype(dtype) * rhs[tap].astype(dtype)
    return total.astype(_result_type(lhs, **params))


def _depthwise_gradient(lhs, rhs, inner, **params):
    """w[t, c] = sum over n and p of x[n, stride t + dilation p, c] y[n, p, c].

    In the layout of a convolution x is [c, *space, n] and y is [*space, n, c].
    """
    del inner
    outputs, dtype = _outputs(lhs, rhs, **params), _precise(lhs)
    x = _each_for(rhs.shape[-1], _with_zeros(jnp.swapaxes(lhs, 0, -1), **params))
    y = jnp.moveaxis(rhs, -2, 0)
    taps = list(itertools.product(*map(range, outputs)))
    strides, sizes, dilation = params["window_strides"], y.shape[1:-1], params["rhs_dilation"]
    space = tuple(range(len(sizes)))

    def add(total, example):  # one at a time, for then they stay in the cache
        x, y = (part.astype(dtype) for part in example)
        seen = [_every(x[None], tap, strides, sizes, dilation)[0] for tap in taps]
        return total + jnp.stack([jnp.sum(part * y, space) for part in seen]), None

    total, _ = lax.scan(add, jnp.zeros((len(taps), x.shape[-1]), dtype), (x, y))
    return total.reshape(1, *outputs, -1).astype(_result_type(lhs, **params))


def _each_for(features, x):
    """Inputs as often as they make features."""
    return jnp.repeat(x, features // x.shape[-1], axis=-1) if features > x.shape[-1] else x


def _outputs(lhs, rhs, *, window_strides, padding, lhs_dilation, rhs_dilation, **_):
    """The number of outputs along each axis of space."""
    sizes = [
        (n - 1) * step + 1 + sum(pad)
        for n, step, pad in zip(lhs.shape[1:-1], lhs_dilation, padding, strict=True)
    ]
    widths = [(k - 1) * step + 1 for k, step in zip(rhs.shape[:-2], rhs_dilation, strict=True)]
    spaces = zip(sizes, widths, window_strides, strict=True)
    return tuple(max(0, (size - width) // stride + 1) for size, width, stride in spaces)


def _with_zeros(lhs, *, padding, lhs_dilation, **_):
    edges = [(*pad, step - 1) for pad, step in zip(padding, lhs_dilation, strict=True)]
    return lax.pad(lhs, jnp.zeros((), lhs.dtype), [(0, 0, 0), *edges, (0, 0, 0)])


def _every(x, start, factor, number, stride):
    """`number` pixels of x `[n, *space, c]` along each axis: from start x factor on, by stride."""
    starts = [s * f for s, f in zip(start, factor, strict=True)]
    ends = [s + (n - 1) * by + 1 for s, n, by in zip(starts, number, stride, strict=True)]
    return lax.slice(x, (0, *starts, 0), (len(x), *ends, x.shape[-1]), (1, *stride, 1))


def _precise(lhs):
    """In which sums are made: at least float32, as XLA makes those of half precision."""
    return jnp.promote_types(lhs.dtype, jnp.float32)


def _result_type(lhs, *, preferred_element_type, **_):
    return lhs.dtype if preferred_element_type is None else preferred_element_type
