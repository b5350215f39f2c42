"""Which channels must go together, found from the network's own equations.

A channel is not one array's business: a filter of a convolution, its bias, the entries of the
batch normalisation behind it and the inputs of whatever reads it stand and fall together, and
where branches are added, so do the channels of both. Here every position of every axis of every
variable gets a number, its label. The labels are carried through the network's equations like
values; equations that add or contract two axes say which labels are the same thing, and those that
cannot lose a position say so. What is connected is a channel.
"""

from collections.abc import Sequence

from jax.extend import core

from prunejax import jaxprs
from prunejax.shrinking import rules
from prunejax.shrinking.labels import Channels, Tracer

OUTPUTS = "they are the network's outputs"


def channels(program: jaxprs.Flat, removable: Sequence[core.Var]) -> Channels:
    """Traces which positions of the removable variables' axes are one channel.

    Args:
      program: the network.
      removable: those inputs that can become smaller: its variables, not its images.
    """
    tracer = Tracer()
    for variable in program.inputs:
        shape = variable.aval.shape
        if variable in removable:
            tracer.labels[variable] = tuple(map(tracer.fresh, shape))
        else:
            tracer.labels[variable] = (None,) * len(shape)
            tracer.of_images.add(variable)
    for variable in program.constants:
        tracer.labels[variable] = (None,) * variable.aval.ndim
    for eqn in program.eqns:
        inputs = [tracer.look_up(atom) for atom in eqn.invars]
        outputs = rules.rule_of(eqn)(tracer, eqn, inputs)
        tracer.labels.update(zip(eqn.outvars, outputs, strict=True))
        if any(map(tracer.depends, eqn.invars)):
            tracer.of_images.update(eqn.outvars)
    for number, atom in enumerate(program.outputs):
        if number == 0:  # the logits; what follows are updated statistics
            tracer.fix_all([tracer.look_up(atom)], OUTPUTS)
    return tracer.result()
