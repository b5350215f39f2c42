"""Which channels must go together, found from the network's own equations.

A channel is not one array's business: a filter of a convolution, its bias, the entries of the
batch normalisation behind it and the inputs of whatever reads it stand and fall together, and
where branches are added, so do the channels of both. Here every position of every axis of every
variable gets a number, its label. The labels are carried through the network's equations like
values; equations that add or contract two axes say which labels are the same thing, and those that
cannot lose a position say so. What is connected is a channel.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend import core
from scipy import sparse

from prunejax import jaxprs

# The labels of one array: for each axis `[n]` integers, or None where no position may go away,
# unless it meets an axis where some do: then what is at those positions does not matter.
Labels = tuple[np.ndarray | None, ...]


class Channels(NamedTuple):
    """What belongs together in a network.

    Attributes:
      labels: for each variable of the program its `Labels`.
      channel: `[labels]` the channel that each label belongs to.
      fixed: reasons why a channel cannot be removed, by its number.
      made: `[labels]` booleans: positions where a layer makes a channel, a filter for example.
      read: `[labels]` booleans: positions where a layer reads a channel.
    """

    labels: dict[core.Var, Labels]
    channel: np.ndarray
    fixed: dict[int, str]
    made: np.ndarray
    read: np.ndarray


def channels(program: jaxprs.Flat, removable: Sequence[core.Var]) -> Channels:
    """Traces which positions of the removable variables' axes are one channel.

    Args:
      program: the network.
      removable: those inputs that can become smaller: its variables, not its images.
    """
    tracer = _Tracer()
    for variable in program.inputs:
        shape = variable.aval.shape
        tracer.labels[variable] = (
            tuple(map(tracer.fresh, shape)) if variable in removable else (None,) * len(shape)
        )
    for variable in program.constants:
        tracer.labels[variable] = (None,) * variable.aval.ndim
    for eqn in program.eqns:
        inputs = [tracer.look_up(atom) for atom in eqn.invars]
        outputs = RULES.get(eqn.primitive.name, _opaque)(tracer, eqn, inputs)
        tracer.labels.update(zip(eqn.outvars, outputs, strict=True))
    for number, atom in enumerate(program.outputs):
        if number == 0:  # the logits; what follows are updated statistics
            tracer.fix_all([tracer.look_up(atom)], "they are the network's outputs")
    return tracer.result()


class _Tracer:
    """Collects labels, which of them are the same, and which must stay."""

    def __init__(self):
        self.labels: dict[core.Var, Labels] = {}
        self.number = 0
        self.same: list[tuple[np.ndarray, np.ndarray]] = []
        self.fixed: list[tuple[np.ndarray, str]] = []
        self.made: list[np.ndarray] = []
        self.read: list[np.ndarray] = []

    def fresh(self, size: int) -> np.ndarray:
        self.number += size
        return np.arange(self.number - size, self.number)

    def look_up(self, atom: Any) -> Labels:
        return self.labels[atom] if jaxprs.is_variable(atom) else (None,) * np.ndim(atom.val)

    def join(self, first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
        """Says that two axes are the same, position by position."""
        if first is None or second is None:
            return second if first is None else first
        if first is not second:
            self.same.append((first, second))
        return first

    def mark(self, axes: list[np.ndarray], labels: np.ndarray | None) -> None:
        if labels is not None:
            axes.append(labels)

    def fix(self, labels: np.ndarray | None, reason: str) -> None:
        if labels is not None:
            self.fixed.append((labels, reason))

    def fix_all(self, arrays: Sequence[Labels], reason: str) -> None:
        for array in arrays:
            for labels in array:
                self.fix(labels, reason)

    def result(self) -> Channels:
        first, second = (
            np.concatenate([np.zeros(0, int), *(pair[i].ravel() for pair in self.same)])
            for i in (0, 1)
        )
        graph = sparse.coo_matrix(
            (np.ones(len(first), bool), (first, second)), shape=(self.number, self.number)
        )
        _, channel = sparse.csgraph.connected_components(graph, directed=False)
        fixed: dict[int, str] = {}
        for labels, reason in self.fixed:
            for number in np.unique(channel[labels]):
                fixed.setdefault(int(number), reason)
        made, read = (self._marked(axes) for axes in (self.made, self.read))
        return Channels(self.labels, channel, fixed, made, read & ~made)

    def _marked(self, axes: list[np.ndarray]) -> np.ndarray:
        marked = np.zeros(self.number, bool)
        for labels in axes:
            marked[labels] = True
        return marked


# -- one rule a kind of equation: (tracer, equation, labels of its inputs) -> labels of its outputs


def _opaque(tracer, eqn, inputs):
    tracer.fix_all(inputs, f"what {eqn.primitive.name!r} does to them is not known")
    return [(None,) * out.aval.ndim for out in eqn.outvars]


def _elementwise(tracer, eqn, inputs):
    arrays = [labels for labels in inputs if labels]  # scalars go with everything
    joined = tuple(_joined(tracer, axis) for axis in zip(*arrays, strict=True))
    return [joined if out.aval.ndim else () for out in eqn.outvars]


def _joined(tracer, axis):
    whole = None
    for labels in axis:
        whole = tracer.join(whole, labels)
    return whole


def _convolution(tracer, eqn, inputs):
    (lhs, rhs), params = inputs, eqn.params
    lhs_spec, rhs_spec, out_spec = params["dimension_numbers"]
    groups = params["feature_group_count"]
    for axis in lhs_spec[2:]:
        tracer.fix(lhs[axis], "a convolution slides along them")
    for axis in rhs_spec[2:]:
        tracer.fix(rhs[axis], "they are a kernel's height and width")
    outputs, inputs_of_kernel = rhs[rhs_spec[0]], rhs[rhs_spec[1]]
    batch, features = lhs[lhs_spec[0]], lhs[lhs_spec[1]]
    if params["batch_group_count"] > 1:
        return _opaque(tracer, eqn, inputs)
    tracer.mark(tracer.made, outputs)
    tracer.mark(tracer.read, inputs_of_kernel)
    if groups == 1:
        _contract(tracer, features, inputs_of_kernel)
    else:
        _contract_groups(tracer, features, inputs_of_kernel, outputs, groups)
    labels: list[np.ndarray | None] = [None] * eqn.outvars[0].aval.ndim
    labels[out_spec[0]], labels[out_spec[1]] = batch, outputs
    return [tuple(labels)]


def _contract(tracer, first, second):
    """Two axes that are multiplied and summed: a position goes from both, or from neither."""
    if first is None or second is None:
        tracer.fix(second if first is None else first, "they read what cannot become smaller")
    else:
        tracer.join(first, second)


def _contract_groups(tracer, features, inputs, outputs, groups):
    """Depthwise: a channel is one group. Else all groups lose the same of their channels."""
    if features is None or outputs is None or inputs is None:
        for labels in (features, inputs, outputs):
            tracer.fix(labels, "a grouped convolution reads what cannot become smaller")
        return
    if len(features) == groups:
        tracer.fix(inputs, "each group of a depthwise convolution has one input")
        tracer.join(np.repeat(features, len(outputs) // groups), outputs)
        return
    features, outputs = features.reshape(groups, -1), outputs.reshape(groups, -1)
    tracer.join(features, np.broadcast_to(inputs, features.shape))
    tracer.join(outputs, np.broadcast_to(outputs[0], outputs.shape))


def _dot(tracer, eqn, inputs):
    lhs, rhs = inputs
    (lhs_sums, rhs_sums), (lhs_batch, rhs_batch) = eqn.params["dimension_numbers"]
    for i, j in zip(lhs_sums, rhs_sums, strict=True):
        _contract(tracer, lhs[i], rhs[j])
        tracer.mark(tracer.read, lhs[i])
        tracer.mark(tracer.read, rhs[j])
    batch = [tracer.join(lhs[i], rhs[j]) for i, j in zip(lhs_batch, rhs_batch, strict=True)]
    left = [axis for i, axis in enumerate(lhs) if i not in (*lhs_sums, *lhs_batch)]
    right = [axis for j, axis in enumerate(rhs) if j not in (*rhs_sums, *rhs_batch)]
    for labels in (*left, *right):
        tracer.mark(tracer.made, labels)
    return [(*batch, *left, *right)]


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
            if sizes[0] <= sizes[1] and i < len(before) and (sizes[0] < sizes[1] or not first):
                sizes[0] *= before[i]
                first.append(i)
                i += 1
            elif j < len(after) and (sizes[1] < sizes[0] or not second):
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
    if not known:
        return [None] * len(after)
    if len(known) > 1:
        for i in known:
            tracer.fix(labels[i], "a reshape mixes them with other channels")
        return [None] * len(after)
    axis = known[0]
    whole = labels[axis].reshape([-1 if i == axis else 1 for i in range(len(before))])
    whole = np.broadcast_to(whole, before).reshape(after)
    for i in range(len(after)):
        line = np.moveaxis(whole, i, 0).reshape(after[i], -1)
        if np.all(line == line[:, :1]) and after[i] > 1:
            return [line[:, 0] if k == i else None for k in range(len(after))]
    tracer.fix(labels[axis], "a reshape splits them")
    return [None] * len(after)


def _reduction(tracer, eqn, inputs):
    gone = set(eqn.params["axes"])
    out = []
    for axis, labels in enumerate(inputs[0]):
        if axis in gone:
            tracer.fix(labels, f"{eqn.primitive.name!r} is taken over them")
        else:
            out.append(labels)
    return [tuple(out) for _ in eqn.outvars]


def _window(tracer, eqn, inputs):
    """Pooling: an axis on which the window is a single place stays as it is."""
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
            out.append(_joined(tracer, parts))
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


Rule = Callable[[_Tracer, core.JaxprEqn, list[Labels]], list[Labels]]

RULES: dict[str, Rule] = {
    **dict.fromkeys(jaxprs.ELEMENTWISE, _elementwise),
    **dict.fromkeys(
        ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or",
         "argmax", "argmin"),
        _reduction,
    ),
    **dict.fromkeys(
        ("reduce_window_max", "reduce_window_sum", "reduce_window_min", "reduce_window"), _window
    ),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _cumulative),
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "concatenate": _concatenate,
    "slice": _slice,
    "split": _split,
    "pad": _pad,
    "rev": _reverse,
    "iota": _nothing,
    "optimization_barrier": _unchanged,
}  # fmt: skip
