"""Gradients of strided convolutions, without the zeros between their pixels."""

from prunejax.canonical.plain import padded


def applies(
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


def convolve(lhs, rhs, inner, *, lhs_dilation, padding, **params):
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
    rhs = padded(rhs, dict(enumerate(behind)))
    parts = rhs.reshape(taps[0], s, taps[1], s, inputs, features)[:, ::-1, :, ::-1]
    parts = parts.transpose(0, 2, 4, 1, 3, 5).reshape(*taps, inputs, s * s * features)
    out = inner(lhs, parts, lhs_dilation=(1, 1), padding=tuple(pads), **params)
    out = out.reshape(len(lhs), *blocks, s, s, features).transpose(0, 1, 3, 2, 4, 5)
    out = out.reshape(len(lhs), blocks[0] * s, blocks[1] * s, features)
    ends = [skip + n for skip, n in zip(skips, outputs, strict=True)]
    return out[:, skips[0] : ends[0], skips[1] : ends[1]]
