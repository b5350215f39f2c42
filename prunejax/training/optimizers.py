"""Optax optimisers by name, with the learning-rate schedules of the literature."""

import optax

from prunejax import checks, names


def create(
    name: str,
    learning_rate: float,
    steps: int,
    *,
    schedule: str = "cosine",
    begin: int = 0,
    **options,
) -> optax.GradientTransformation:
    """An optimiser for a phase of `steps` steps.

    Args:
      name: "adam", "adamw" or "sgd" (with Nesterov momentum 0.9 unless `options` say otherwise).
      learning_rate: at the schedule's start, positive.
      steps: length of the schedule, after which a cosine has reached 0.
      schedule: "cosine" or "constant".
      begin: step of the schedule at which the phase begins.
      **options: further arguments of the Optax optimiser, such as `weight_decay`; for "sgd" that
        is the coupled L2 penalty of the literature.

    Raises:
      ValueError: an unknown optimiser or schedule, or a learning rate that is not positive.
    """
    checks.number("learning_rate", learning_rate, within="(0, inf)")
    cosine = optax.cosine_decay_schedule(learning_rate, steps)
    rates = {"cosine": lambda step: cosine(begin + step), "constant": learning_rate}
    rate = names.lookup("schedule", schedule, rates)
    return names.build("optimizer", name, OPTIMIZERS, options, learning_rate=rate)


def _sgd(learning_rate, momentum=0.9, nesterov=True, weight_decay=0.0):
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum=momentum, nesterov=nesterov),
    )


OPTIMIZERS = {"adam": optax.adam, "adamw": optax.adamw, "sgd": _sgd}
