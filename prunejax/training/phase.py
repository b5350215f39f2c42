"""One stretch of training with one objective: what pruning methods are made of.

A method is a sequence of phases. What passes from one to the next is `(params, mask)`: effective
parameters and what is kept of them; a phase may ask that those it begins with are remembered.
Within a phase a method may train something else:

    method        trained            auxiliary              materialize         at begin / update
    one-shot      weights            -                      weights             begin: prune
    gradual, BAP  weights            -                      weights             (in the optimiser)
    HYDRA         scores             weights                weights * top-k     begin: scores
    AC/DC         weights            -                      weights             (in the optimiser)
    RigL, SET     weights            -                      weights             begin: prune
    lottery       weights            -                      weights             begin: prune, rewind

The loop knows none of them: it calls the functions below.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from prunejax import checks, masks, pruning
from prunejax.classifier import Variables
from prunejax.training.objectives import Objective

Params = Any
Mask = Any
Auxiliary = Any


class Start(NamedTuple):
    """What a phase finds when it begins.

    Attributes:
      params, mask: of the network as the phase before left it.
      remembered: the variables that the last phase with `remembers` began with; None before.
      evidence: the phase's random key, its network and objective, and as many training examples as
        it asked for.
    """

    params: Params
    mask: Mask
    remembered: Variables | None
    evidence: pruning.Evidence


def _mask_in_optimizer(trainable: Any, auxiliary: Auxiliary, opt_state: optax.OptState) -> Mask:
    mask = pruning.mask_of(opt_state, trainable)
    return masks.dense(trainable) if mask is None else mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """A phase of training.

    Attributes:
      name: for progress and logs, such as "finetune".
      epochs: its length.
      objective: what is minimised.
      optimizer: `mask -> optax optimiser`, given the mask that `begin` decided on. One that takes
        extra arguments gets `evidence=`, of the network after this step: its other variables as the
        step moved them, the step's random key, the phase's objective and examples.
      begin: `Start -> (trainable, auxiliary, mask)`, compiled.
      examples: training examples, drawn at random before the first step, for the evidence that
        `begin` and the optimiser find.
      needs_trained: it begins by pruning what was trained before: as the first phase it makes
        sense from a trained network only.
      remembers: keep the network that this phase begins with for the phases after it.
      rewinds: variables that are no parameters, such as batch statistics, go back to the remembered
        ones; about parameters `begin` decides.
      materialize: `(trainable, auxiliary) -> params`, differentiable: the network's parameters.
      update: `(trainable, auxiliary, step) -> (trainable, auxiliary)` after each optimiser step;
        `step` counts from 0 within the phase.
      mask: `(trainable, auxiliary, opt_state) -> mask` in force; by default the optimiser's.
      selectable_from: epoch of the phase from whose end on a network may be chosen as the best: not
        before the target sparsity is reached. None: this phase's networks are only on the way.
    """

    name: str
    epochs: int
    objective: Objective
    optimizer: Callable[[Mask], optax.GradientTransformation]
    begin: Callable[[Start], tuple[Any, Auxiliary, Mask]] = lambda start: (
        start.params,
        (),
        start.mask,
    )
    examples: int = 0
    needs_trained: bool = False
    remembers: bool = False
    rewinds: bool = False
    materialize: Callable[[Any, Auxiliary], Params] = lambda trainable, auxiliary: trainable
    update: Callable[[Any, Auxiliary, jax.Array], tuple[Any, Auxiliary]] = (
        lambda trainable, auxiliary, step: (trainable, auxiliary)
    )
    mask: Callable[[Any, Auxiliary, optax.OptState], Mask] = _mask_in_optimizer
    selectable_from: int | None = 0

    def __post_init__(self):
        checks.integer(f"epochs of phase {self.name!r}", self.epochs, least=1)
        checks.integer(f"examples of phase {self.name!r}", self.examples, least=0)
