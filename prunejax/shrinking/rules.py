"""What each kind of equation does to labels.

A rule is `(tracer, equation, labels of its inputs) -> labels of its outputs`; on the way it tells
the tracer which labels are the same thing, and which positions cannot go away.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jax.extend import core

from prunejax import jaxprs
from prunejax.shrinking import products
from prunejax.shrinking.labels import Labels, Tracer

# Their result is zero where one of their operands is, whatever the other one is.
_PRODUCTS = ("mul", "and", "div")


def _elementwise(tracer, eqn, inputs):
    name, out = eqn.primitive.name, []
    arrays = [(atom, own) for atom, own in zip(eqn.invars, inputs, strict=True) if own]  # no scalar
    for axis, size in enumerate(eqn.outvars[0].aval.shape):
        parts = [(atom, _as_long_as(tracer, own[axis], size)) for atom, own in arrays]
        whole = _joined(tracer, [labels for _, labels in parts])
        if name == "select_n" and eqn.invars[0].aval.ndim:
            parts = parts[1:]  # what chooses is not added
        out.append(whole if name in _PRODUCTS else _beside_images(tracer, parts, whole))
    return [tuple(out) for _ in eqn.outvars]


def _as_long_as(tracer, labels, size):
    """An axis of one position goes with all of another's."""
    if labels is None or len(labels) == size:
        return labels
    tracer.fix(labels, "they are repeated")
    return None


def _joined(tracer, axis):
    whole = None
    for labels in axis:
        whole = tracer.join(whole, labels)
    return whole


def _beside_images(tracer, parts, whole):
    """A channel is nothing without its layer only where nothing else of the images is in it."""
    if any(labels is None and tracer.depends(atom) for atom, labels in parts):
        tracer.fix(whole, "they are added to what no layer makes of the images")
        return None
    return whole


def _broadcast(tracer, eqn, inputs):
    labels: list[np.ndarray | None] = [None] * len(eqn.params["shape"])
    for axis, source in zip(eqn.params["broadcast_dimensions"], inputs[0], strict=True):
        if source is not None and len(source) == eqn.params["shape"][axis]:
            labels[axis] = source
        else:
            tracer.fix(source, "they are repeated")
    return [tuple(labels)]


def _transpose(tracer, eqn, inputs):
    return [tuple(inputs[0][axis] for axis in eqn.params["permutation"])]


def _squeeze(tracer, eqn, inputs):
    gone = {axis % len(inputs[0]) for axis in eqn.params["dimensions"]}
    for axis in gone:
        tracer.fix(inputs[0][axis], "one of them is picked out")
    return [tuple(labels for axis, labels in enumerate(inputs[0]) if axis not in gone)]


def _reshape(tracer, eqn, inputs):
    (labels, *_), shape = inputs, eqn.invars[0].aval.shape
    out: list[np.ndarray | None] = []
    for before, after in blocks(shape, eqn.outvars[0].aval.shape):
        sizes = [eqn.outvars[0].aval.shape[axis] for axis in after]
        out += _merged(tracer, [labels[a] for a in before], [shape[a] for a in before], sizes)
    return [tuple(out)]


def blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The axes of two shapes of equal size in the smallest runs that have equal sizes."""
    found, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        first, second = [], []
        sizes = [1, 1]
        while True:
            # In this order: of an unknown number of images b, b < 1 can be told and b <= 1 cannot.
            if i < len(before) and (not first or sizes[0] < sizes[1]) and sizes[0] <= sizes[1]:
                sizes[0] *= before[i]
                first.append(i)
                i += 1
            elif j < len(after) and (not second or sizes[1] < sizes[0]):
                sizes[1] *= after[j]
                second.append(j)
                j += 1
            else:
                break
        found.append((first, second))
    return found


def _merged(tracer, labels, before, after):
    """Axes that become others of the same size together; one of them may have labels."""
    known = [i for i, axis in enumerate(labels) if axis is not None and before[i] > 1]
    for i, axis in enumerate(labels):
        if axis is not None and i not in known:
            tracer.fix(axis, "they are the only one")
    # Positions of a parameter that no layer makes, those of an embedding, stay anyway.
    going = [i for i in known if tracer.is_made(labels[i])] if len(known) > 1 else known
    for i in known:
        if len(going) != 1 or i not in going:
            tracer.fix(labels[i], "a reshape mixes them with other channels")
    if len(going) != 1:
        return [None] * len(after)
    (axis,) = going
    whole = labels[axis].reshape([-1 if i == axis else 1 for i in range(len(before))])
    whole = np.broadcast_to(whole, before).reshape(after)
    for i in range(len(after)):
        line = np.moveaxis(whole, i, 0).reshape(after[i], -1)
        if np.all(line == line[:, :1]) and after[i] > 1:
            return [line[:, 0] if k == i else None for k in range(len(after))]
    tracer.fix(labels[axis], "a reshape splits them")
    return [None] * len(after)


def _reduction(tracer, eqn, inputs):
    if len(inputs) > 2:  # of several arrays at once
        return tracer.fix_unknown(eqn, inputs)
    gone = set(eqn.params["dimensions" if "dimensions" in eqn.params else "axes"])
    out = []
    for axis, labels in enumerate(inputs[0]):
        if axis in gone:
            tracer.fix(labels, f"{eqn.primitive.name!r} is taken over them")
        else:
            out.append(labels)
    return [tuple(out) for _ in eqn.outvars]


def _window(tracer, eqn, inputs):
    """Pooling: an axis on which the window is a single place stays as it is."""
    if len(inputs) > 2:  # of several arrays at once
        return tracer.fix_unknown(eqn, inputs)
    params, out = eqn.params, eqn.outvars[0].aval.shape
    labels = []
    for axis, source in enumerate(inputs[0]):
        if params["window_dimensions"][axis] == 1 and source is not None:
            whole = len(source) == out[axis] and params["window_strides"][axis] == 1
        else:
            whole = False
        if not whole:
            tracer.fix(source, "a window slides along them")
        labels.append(source if whole else None)
    return [tuple(labels)]


def _cumulative(tracer, eqn, inputs):
    tracer.fix(inputs[0][eqn.params["axis"]], f"{eqn.primitive.name!r} runs along them")
    return [inputs[0]]


def _concatenate(tracer, eqn, inputs):
    along, out = eqn.params["dimension"], []
    for axis, parts in enumerate(zip(*inputs, strict=True)):
        if axis != along:
            out.append(_side_by_side(tracer, eqn, parts))
        elif all(labels is None for labels in parts):
            out.append(None)
        else:
            sizes = [atom.aval.shape[axis] for atom in eqn.invars]
            parts = [
                tracer.fresh(size) if labels is None else labels
                for size, labels in zip(sizes, parts, strict=True)
            ]
            for labels, known in zip(parts, [part[axis] for part in inputs], strict=True):
                if known is None:
                    tracer.fix(labels, "they stand beside channels that can become fewer")
            out.append(np.concatenate(parts))
    return [tuple(out)]


def _stack(tracer, eqn, inputs):
    out = [_side_by_side(tracer, eqn, parts) for parts in zip(*inputs, strict=True)]
    out.insert(eqn.params["axis"], None)
    return [tuple(out)]


def _side_by_side(tracer, eqn, parts):
    whole = _joined(tracer, parts)
    return _beside_images(tracer, list(zip(eqn.invars, parts, strict=True)), whole)


def _slice(tracer, eqn, inputs):
    params, shape, out = eqn.params, eqn.invars[0].aval.shape, []
    strides = params["strides"] or (1,) * len(shape)
    for axis, labels in enumerate(inputs[0]):
        start, limit, stride = params["start_indices"][axis], params["limit_indices"][axis], strides
        if labels is not None and stride[axis] > 1:
            tracer.fix(labels, "a slice leaves some of them out")
            labels = None
        out.append(None if labels is None else labels[start:limit])
    return [tuple(out)]


def _gather(tracer, eqn, inputs):
    """Indexing: an axis that is taken as a whole stays as it is."""
    (labels, indices), shape = inputs, eqn.invars[0].aval.shape
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    tracer.fix_all([indices], "they are indices")
    looked_up = {*numbers.start_index_map, *numbers.operand_batching_dims}
    out: list[np.ndarray | None] = [None] * eqn.outvars[0].aval.ndim
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    places = iter(numbers.offset_dims)
    for axis, own in enumerate(labels):
        place = None if axis in gone else next(places)
        if place is None or axis in looked_up or sizes[axis] != shape[axis]:
            tracer.fix(own, "some of them are looked up by their index")
        else:
            out[place] = own
    return [tuple(out)]


def _split(tracer, eqn, inputs):
    axis, ends = eqn.params["axis"], np.cumsum(eqn.params["sizes"])[:-1]
    labels = inputs[0][axis]
    parts = [None] * len(eqn.outvars) if labels is None else np.split(labels, ends)
    return [(*inputs[0][:axis], part, *inputs[0][axis + 1 :]) for part in parts]


def _pad(tracer, eqn, inputs):
    out = []
    for labels, (low, high, interior) in zip(inputs[0], eqn.params["padding_config"], strict=True):
        if labels is None or (low, high, interior) == (0, 0, 0):
            out.append(labels)
        elif interior or low < 0 or high < 0:
            tracer.fix(labels, "they are padded between or cut off")
            out.append(None)
        else:  # new channels, of a constant
            out.append(np.concatenate([tracer.fresh(low), labels, tracer.fresh(high)]))
    return [tuple(out)]


def _reverse(tracer, eqn, inputs):
    return [
        tuple(
            labels if labels is None or axis not in eqn.params["dimensions"] else labels[::-1]
            for axis, labels in enumerate(inputs[0])
        )
    ]


def _unchanged(tracer, eqn, inputs):
    return inputs


def _nothing(tracer, eqn, inputs):
    return [(None,) * out.aval.ndim for out in eqn.outvars]


Rule = Callable[[Tracer, core.JaxprEqn, list[Labels]], list[Labels]]

RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("reduce", "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and",
         "reduce_or", "argmax", "argmin"),
        _reduction,
    ),
    **dict.fromkeys(
        ("reduce_window_max", "reduce_window_sum", "reduce_window_min", "reduce_window"), _window
    ),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _cumulative),
    "conv_general_dilated": products.convolution,
    "dot_general": products.dot,
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "concatenate": _concatenate,
    "stack": _stack,
    "slice": _slice,
    "gather": _gather,
    "split": _split,
    "pad": _pad,
    "rev": _reverse,
    "iota": _nothing,
    "optimization_barrier": _unchanged,
}  # fmt: skip


def rule_of(eqn: core.JaxprEqn) -> Rule:
    """The rule for an equation."""
    if jaxprs.is_elementwise(eqn):
        return _elementwise
    return RULES.get(eqn.primitive.name, Tracer.fix_unknown)
