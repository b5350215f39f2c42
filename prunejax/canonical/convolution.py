"""One convolution, in the form that XLA runs fast."""

from prunejax.canonical import grouped, narrow, plain, strided


def convolve(lhs, rhs, **params):
    """`lax.conv_general_dilated_p` for operands in the layout NHWC x HWIO -> NHWC, and so out.

    Args:
      lhs, rhs: `[N, *space, inputs]` and `[*space, inputs of a group, features]`.
      **params: the primitive's, without `dimension_numbers`.
    """
    if grouped.applies(lhs, rhs, **params):
        return grouped.convolve(lhs, rhs, convolve, **params)
    if strided.applies(lhs, rhs, **params):
        return strided.convolve(lhs, rhs, **params)
    if narrow.applies(lhs, rhs, **params):
        return narrow.convolve(lhs, rhs, **params)
    return plain.convolve(lhs, rhs, **params)
