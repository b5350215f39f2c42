"""What layers do to labels: the rules of equations that multiply and sum; see `rules`."""

import numpy as np


def convolution(tracer, eqn, inputs):
    """Its kernel makes the channels that come out and reads those that go in."""
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
        return tracer.fix_unknown(eqn, inputs)
    made, read = _roles(tracer, eqn)
    tracer.mark(made, outputs)
    tracer.mark(read, inputs_of_kernel)
    if all(map(tracer.depends, eqn.invars)):
        tracer.mark(tracer.contracted, inputs_of_kernel)
    if groups == 1:
        _contract(tracer, features, inputs_of_kernel)
    else:
        _contract_groups(tracer, features, inputs_of_kernel, outputs, groups)
    labels: list[np.ndarray | None] = [None] * eqn.outvars[0].aval.ndim
    labels[out_spec[0]], labels[out_spec[1]] = batch, outputs
    return [tuple(labels)]


def _roles(tracer, eqn):
    """Where the tracer collects what a product makes and reads."""
    if any(map(tracer.depends, eqn.invars)):
        return tracer.made, tracer.read
    return tracer.made_of_weights, tracer.read_of_weights


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
        tracer.filter(np.repeat(features, len(outputs) // groups), outputs)
        return
    features, outputs = features.reshape(groups, -1), outputs.reshape(groups, -1)
    tracer.join(features, np.broadcast_to(inputs, features.shape))
    tracer.join(outputs, np.broadcast_to(outputs[0], outputs.shape))


def dot(tracer, eqn, inputs):
    """Axes that are summed read channels, the others make them."""
    lhs, rhs = inputs
    (lhs_sums, rhs_sums), (lhs_batch, rhs_batch) = eqn.params["dimension_numbers"]
    weights = [not tracer.depends(atom) for atom in eqn.invars]
    made, read = _roles(tracer, eqn)
    for i, j in zip(lhs_sums, rhs_sums, strict=True):
        _contract(tracer, lhs[i], rhs[j])
        for labels, is_weight in zip((lhs[i], rhs[j]), weights, strict=True):
            if is_weight:
                tracer.mark(read, labels)
            elif not any(weights):
                tracer.mark(tracer.contracted, labels)
    batch = [tracer.join(lhs[i], rhs[j]) for i, j in zip(lhs_batch, rhs_batch, strict=True)]
    left = [axis for i, axis in enumerate(lhs) if i not in (*lhs_sums, *lhs_batch)]
    right = [axis for j, axis in enumerate(rhs) if j not in (*rhs_sums, *rhs_batch)]
    for free, is_weight in zip((left, right), weights, strict=True):
        for labels in free if is_weight else ():
            tracer.mark(made, labels)
    return [(*batch, *left, *right)]
