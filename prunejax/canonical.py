"""Convolutions that stay fast inside compiled loops, for any network.

JAX writes the gradient of a convolution as another convolution with permuted axes and a reversed
kernel. XLA's CPU compiler brings that to the layout its fast code wants, but not inside a `while`
body, where it then runs 3 to 40 times slower. `canonical` rewrites a function so that each of its
convolutions has the layout NHWC x HWIO -> NHWC from the start; the mathematics is unchanged.
The gradient of a strided convolution, in which XLA would also multiply inserted zeros, becomes a
convolution without them; on a CPU convolutions of few channels get as many as are fast, and images
smaller than a kernel get their padding beforehand.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from prunejax import jaxprs

# Up to 16 features XLA's CPU compiler takes code that is 2 to 7 times slower than that for 32, and
# with an odd number of inputs that for 17 to 32 is slow too (jaxlib 0.10; in 0.12 1.2 to 3 times).
_FAST_CHANNELS = 32


def canonical(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with all its convolutions, also those of gradients, in canonical layout.

    Apply it around a gradient, inside the loop: `lax.scan(canonical(training_step), ...)`.
    It must be the outermost of the transformations of autodiff: differentiate first.

    Args:
      function: takes and returns pytrees of arrays, positional arguments only.
    """

    @functools.wraps(function)
    def wrapped(*args):
        jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        leaves = _evaluate(jaxpr.jaxpr, jaxpr.consts, *jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    return wrapped


def _evaluate(jaxpr: core.Jaxpr, consts: Sequence[Any], *args: Any) -> list[Any]:
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(atom):
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        if _is_convolution(eqn):
            outputs = [_convolution(*inputs, **eqn.params)]
        else:
            inner = {n: _rewrite(p) for n, p in eqn.params.items() if _holds_convolution(p)}
            outputs = jaxprs.evaluate(eqn, inputs, **inner)
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _is_convolution(eqn: core.JaxprEqn) -> bool:
    return eqn.primitive is lax.conv_general_dilated_p


def _holds_convolution(param: Any) -> bool:
    if isinstance(param, tuple | list):
        return any(map(_holds_convolution, param))
    if isinstance(param, core.ClosedJaxpr):
        param = param.jaxpr
    return isinstance(param, core.Jaxpr) and any(
        _is_convolution(eqn) or any(map(_holds_convolution, eqn.params.values()))
        for eqn in param.eqns
    )


def _rewrite(param: Any) -> Any:
    """The programs inside loops, branches and calls, rewritten likewise."""
    if isinstance(param, tuple | list):
        return type(param)(_rewrite(p) if _holds_convolution(p) else p for p in param)
    closed = isinstance(param, core.ClosedJaxpr)
    jaxpr, consts = (param.jaxpr, param.consts) if closed else (param, ())
    inputs = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in jaxpr.invars]
    rewritten = jax.make_jaxpr(functools.partial(_evaluate, jaxpr, consts))(*inputs)
    return rewritten if closed else rewritten.jaxpr


def _convolution(lhs, rhs, *, dimension_numbers, **params):
    lhs_spec, rhs_spec, out_spec = dimension_numbers
    out = _canonical_convolution(
        lax.transpose(lhs, (lhs_spec[0], *lhs_spec[2:], lhs_spec[1])),
        lax.transpose(rhs, (*rhs_spec[2:], rhs_spec[1], rhs_spec[0])),
        **params,
    )
    # Axis i of `out` belongs at position `order[i]` of what the caller asked for.
    order = (out_spec[0], *out_spec[2:], out_spec[1])
    return lax.transpose(out, tuple(order.index(axis) for axis in range(out.ndim)))


def _canonical_convolution(lhs, rhs, **params):
    if _is_undone_stride(lhs, **params):
        return _undone_stride(lhs, rhs, **params)
    if _is_narrow(lhs, rhs, **params):
        return _widened(lhs, rhs, **params)
    return _as_it_is(lhs, rhs, **params)


def _as_it_is(lhs, rhs, *, padding, **params):
    if _is_kernel_larger(lhs, rhs, **params):
        # Without the barrier XLA makes the zeros padding again.
        lhs = lax.optimization_barrier(_padded(lhs, dict(enumerate(padding, start=1))))
        padding = ((0, 0),) * len(padding)
    batch, *space, features = range(lhs.ndim)
    numbers = lax.ConvDimensionNumbers(
        lhs_spec=(batch, features, *space),
        rhs_spec=(lhs.ndim - 1, lhs.ndim - 2, *range(lhs.ndim - 2)),
        out_spec=(batch, features, *space),
    )
    return lax.conv_general_dilated_p.bind(
        lhs, rhs, dimension_numbers=numbers, padding=padding, **params
    )


def _is_kernel_larger(lhs, rhs, *, lhs_dilation, **_):
    """XLA takes the larger of the two for the image, by code that is up to 125 times as slow.

    On a CPU: a 3 x 3 kernel on 2 x 2 pixels, as at the end of VGG-16. It compares sizes without
    padding, so zeros that are part of the image keep it from that, and cost nothing.
    """
    image, kernel = math.prod(lhs.shape[1:-1]), math.prod(rhs.shape[:-2])
    return jax.default_backend() == "cpu" and {*lhs_dilation} == {1} and kernel > image


def _is_undone_stride(
    lhs,
    *,
    lhs_dilation,
    rhs_dilation,
    window_strides,
    feature_group_count,
    batch_group_count,
    **_,
):
    """The gradient of a planar convolution of stride s > 1 with respect to its input."""
    once = {*rhs_dilation, *window_strides, feature_group_count, batch_group_count} == {1}
    return lhs.ndim == 4 and once and len({*lhs_dilation}) == 1 and lhs_dilation[0] > 1


def _undone_stride(lhs, rhs, *, lhs_dilation, padding, **params):
    """A convolution of an image with s - 1 zeros between its pixels, without the zeros.

    Outputs whose positions are congruent modulo s see the same part of the kernel. So each of the
    s x s parts is a kernel of its own, side by side as output features of one convolution of the
    undilated image; the features are then laid out in space. XLA would multiply the zeros.
    """
    s = lhs_dilation[0]
    *kernel_sizes, inputs, features = rhs.shape
    sizes = lhs.shape[1:3]
    taps = [-(-k // s) for k in kernel_sizes]
    outputs = [
        (n - 1) * s + 1 + sum(pad) - k + 1
        for n, k, pad in zip(sizes, kernel_sizes, padding, strict=True)
    ]
    # Starting `skip` earlier lets all parts begin at the same pixel.
    skips = [(s - 1 - low) % s for low, _ in padding]
    blocks = [-(-(out + skip) // s) for out, skip in zip(outputs, skips, strict=True)]
    lows = [(low + skip) // s for (low, _), skip in zip(padding, skips, strict=True)]
    pads = [
        (low, block + tap - 1 - n - low)
        for low, block, tap, n in zip(lows, blocks, taps, sizes, strict=True)
    ]
    behind = [(0, tap * s - k) for tap, k in zip(taps, kernel_sizes, strict=True)]
    rhs = _padded(rhs, dict(enumerate(behind)))
    parts = rhs.reshape(taps[0], s, taps[1], s, inputs, features)[:, ::-1, :, ::-1]
    parts = parts.transpose(0, 2, 4, 1, 3, 5).reshape(*taps, inputs, s * s * features)
    out = _canonical_convolution(lhs, parts, lhs_dilation=(1, 1), padding=tuple(pads), **params)
    out = out.reshape(len(lhs), *blocks, s, s, features).transpose(0, 1, 3, 2, 4, 5)
    out = out.reshape(len(lhs), blocks[0] * s, blocks[1] * s, features)
    ends = [skip + n for skip, n in zip(skips, outputs, strict=True)]
    return out[:, skips[0] : ends[0], skips[1] : ends[1]]


def _is_narrow(
    lhs,
    rhs,
    *,
    window_strides,
    padding,
    lhs_dilation,
    rhs_dilation,
    feature_group_count,
    batch_group_count,
    **_,
):
    """A planar convolution of few channels on a CPU: the first layers of most networks."""
    once = {*lhs_dilation, *rhs_dilation, feature_group_count, batch_group_count} == {1}
    if lhs.ndim != 4 or not once or jax.default_backend() != "cpu":
        return False
    return _neighbours(lhs.shape, rhs.shape, window_strides[1], padding[1]) > 0


def _neighbours(lhs: Sequence[int], rhs: Sequence[int], stride: int, padding: Sequence[int]) -> int:
    """How many outputs beside each other should be one with more features; 0 for as it is."""
    inputs, features = rhs[2:]
    outputs = (lhs[2] + sum(padding) - rhs[1]) // stride + 1
    most = min(_FAST_CHANNELS // max(inputs, features), outputs)
    if most > 1:
        return 2 ** (most.bit_length() - 1)
    if most == 1 and inputs % 2 == 1 and inputs > 1 and outputs > 1:
        return 1 if stride % 2 == 0 else 2
    return 0


def _widened(lhs, rhs, *, window_strides, padding, **params):
    """The same convolution with pixels that lie beside each other as channels of one.

    A block of n outputs is one pixel with n times the features; it reads blocks of n x stride
    pixels, each one pixel with that many times the inputs. In memory nothing moves.
    """
    stride, (low, high) = window_strides[1], padding[1]
    (number, height, width, inputs), (rows, size, _, features) = lhs.shape, rhs.shape
    n = _neighbours(lhs.shape, rhs.shape, stride, padding[1])
    outputs = (width + low + high - size) // stride + 1
    blocks, taps = -(-outputs // n), -(-(stride * (n - 1) + size) // (stride * n))
    block, columns = stride * n, (blocks - 1 + taps) * stride * n
    lhs = _padded(lhs, {2: (low, columns - width - low)})
    # Output r of a block sees the kernel stride x r pixels farther on.
    starts = range(0, block, stride)
    parts = [_padded(rhs, {1: (start, taps * block - size - start)}) for start in starts]
    out = _as_it_is(
        lhs.reshape(number, height, columns // block, block * inputs),
        jnp.stack(parts, -2).reshape(rows, taps, block * inputs, n * features),
        window_strides=(window_strides[0], 1),
        padding=(padding[0], (0, 0)),
        **params,
    )
    return out.reshape(number, out.shape[1], blocks * n, features)[:, :, :outputs]


def _padded(array, edges):
    """Zeros before and behind along some axes, `{axis: (low, high)}`; negative numbers cut off."""
    edges = [(*edges.get(axis, (0, 0)), 0) for axis in range(array.ndim)]
    return lax.pad(array, jnp.zeros((), array.dtype), edges)
