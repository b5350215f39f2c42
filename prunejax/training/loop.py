"""The training loop: phases, compiled chunks of steps, validation, resumable checkpoints.

It knows no method and no attack. One process or many, one device or many: batches are sharded over
a mesh, the state is replicated.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prunejax import checks, masks, trees
from prunejax.canonical import canonical
from prunejax.classifier import Classifier, Network, Variables
from prunejax.data import Dataset, augment
from prunejax.training import batches, checkpoints
from prunejax.training.evidence import evidence
from prunejax.training.phase import Phase, Start

# Images that travel to the devices together.
CHUNK_BYTES = 64 * 2**20
# Progress is reported that often in an epoch, but not after fewer steps than that.
REPORTS_AN_EPOCH, LEAST_STEPS = 20, 10


class TrainState(NamedTuple):
    """Everything a phase changes.

    Attributes:
      step: optimiser steps made in this phase.
      trainable, auxiliary: what the phase trains, and what it keeps beside it.
      opt_state: the optimiser's state, the mask in it.
      collections: the network's other variables, such as batch statistics.
    """

    step: jax.Array
    trainable: Any
    auxiliary: Any
    opt_state: optax.OptState
    collections: Variables


class Trained(NamedTuple):
    """A network and what pruning left of it."""

    variables: Variables
    mask: Any


class DivergedError(RuntimeError):
    """The loss or the network is no longer made of finite numbers."""


def train(
    network: Network,
    start: Trained,
    phases: Sequence[Phase],
    dataset: Dataset,
    *,
    batch_size: int,
    seed: int = 0,
    shift: int = 0,
    flip: bool = False,
    validate: Callable[[Classifier], dict[str, float]] | None = None,
    select: str | None = None,
    store: checkpoints.Store | None = None,
    checkpoint_every: int = 1,
    log: Callable[[dict[str, Any]], None] = lambda row: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    mesh: Mesh | None = None,
) -> Trained:
    """Runs the phases one after another; returns the best network of the last one.

    Args:
      network: the architecture.
      start: initial variables and mask.
      phases: the method.
      dataset: training examples.
      batch_size: examples a step over all devices; a multiple of their number.
      seed: batch order is a function of (seed, epoch), every random draw of (seed, step).
      shift: augmentation by random shifts of up to that many pixels.
      flip: augmentation by random left-right flips.
      validate: `classifier -> metrics` on held-out data, after each epoch.
      select: the validation metric whose highest value marks the best network of a phase, among
        those at the target sparsity; the last network where None.
      store: where checkpoints go; what it holds already is resumed from, bit for bit.
      checkpoint_every: epochs between two checkpoints; the end of a phase always gets one.
      log: called after each epoch with a row of numbers.
      progress: called with (steps made, steps in all): before the first step, then after each
        twentieth of an epoch, but not after fewer than ten steps.
      mesh: the devices; all by default.

    Raises:
      ValueError: no phases, a batch size that the data or the devices cannot have, or another
        number out of range; before anything is compiled.
      DivergedError: a loss or a parameter that is not finite; the last checkpoint is good.
    """
    checks.integer("shift", shift, least=0)
    checks.integer("checkpoint_every", checkpoint_every, least=1)
    check(network, start, phases, dataset)
    mesh = batches.data_mesh() if mesh is None else mesh
    if batch_size % mesh.size:
        raise ValueError(
            f"batch_size is {batch_size}; it must be a multiple of {mesh.size} devices."
        )
    steps = len(batches.epoch_indices(len(dataset), batch_size, seed, 0))
    held = min(steps, max(1, CHUNK_BYTES // (batch_size * dataset.images[0].nbytes)))
    stride = max(LEAST_STEPS, -(-steps // REPORTS_AN_EPOCH))
    total = steps * sum(phase.epochs for phase in phases)
    run_epoch = functools.partial(
        _run_epoch,
        dataset=dataset,
        mesh=mesh,
        held=held,
        stride=stride,
        progress=lambda made: progress(made, total),
    )
    everywhere = NamedSharding(mesh, PartitionSpec())
    resumed = store.latest() if store else None
    progress(_epochs_made(phases, resumed) * steps, total)

    current, remembered, epochs_before = _on_host(start), None, 0
    for number, phase in enumerate(phases):
        if phase.remembers:
            remembered = current.variables
        begin_phase = functools.partial(begin, network, phase, draw=(seed, number))
        shown = _examples(dataset, phase.examples, seed)
        found = current, remembered, shown
        shapes = jax.eval_shape(begin_phase, *found)
        end_shapes = jax.eval_shape(functools.partial(end, phase), shapes)
        if resumed and number < resumed.phase:
            current, epochs_before = end_shapes, epochs_before + phase.epochs
            continue
        if resumed and number == resumed.phase:
            first_epoch, best_value = resumed.epoch, resumed.best_value
            template = {"state": shapes, "best": end_shapes, "remembered": remembered}
            restored = jax.device_put(store.restore(resumed, template), everywhere)
            state, best = restored["state"], restored["best"]
            remembered = _on_host(restored["remembered"])
        else:
            first_epoch, best_value = 0, -np.inf
            state = jax.jit(begin_phase, out_shardings=everywhere)(*found)
            best = None
        run_steps = compile_steps(network, phase, current.mask, (seed, number), shift, flip)
        shown = jax.device_put(shown, everywhere)
        finish = jax.jit(functools.partial(end, phase))

        for epoch in range(first_epoch, phase.epochs):
            global_epoch = epochs_before + epoch
            indices = batches.epoch_indices(len(dataset), batch_size, seed, global_epoch)
            state, (loss, metrics) = run_epoch(
                run_steps, state, indices, shown, made=global_epoch * steps
            )
            now = _on_host(finish(state))
            _require_finite(now.variables, state.trainable, (global_epoch + 1) * steps - 1)
            row = {
                "epoch": global_epoch + 1,
                "step": (global_epoch + 1) * steps,
                "phase": phase.name,
                "loss": loss,
                **metrics,
                "density": masks.density(now.variables["params"], now.mask),
            }
            if validate is not None:
                row |= validate(Classifier(now.variables, network))
            log(row)
            value = row[select] if select else global_epoch
            selectable = phase.selectable_from is not None and epoch >= phase.selectable_from
            if best is None or not selectable or value > best_value:
                best, best_value = now, value if selectable else -np.inf
            if store and ((epoch + 1) % checkpoint_every == 0 or epoch + 1 == phase.epochs):
                position = checkpoints.Position(number, epoch + 1, best_value)
                content = {"state": state, "best": best, "remembered": remembered}
                store.save(global_epoch + 1, position, content)
        current, epochs_before = _on_host(finish(state)), epochs_before + phase.epochs
    return best


def _run_epoch(
    run_steps, state, indices, shown, *, made, dataset, mesh, held, stride, progress
) -> tuple[TrainState, tuple[float, dict[str, float]]]:
    """The state after an epoch, and its mean loss and metrics.

    Args:
      run_steps: from `compile_steps`.
      state: before it.
      indices: `[steps, B]` of the examples.
      shown: images and labels for the evidence.
      made: steps before it.
      dataset: the examples.
      mesh: the devices.
      held: so many batches are on the devices together.
      stride: steps between two calls of `progress(steps made)`.
      progress: called so.
    """
    outcomes = []
    for part in np.split(indices, range(held, len(indices), held)):
        # Of one size, so that one program serves all.
        padded = np.resize(part, (held, indices.shape[1]))
        examples = batches.to_devices(dataset, padded, mesh)
        for first in range(0, len(part), stride):
            last = min(first + stride, len(part))
            state, rows = run_steps(state, examples, first, last, shown)
            outcomes.append(_slice(rows, first, last))
            _require_finite_losses(outcomes[-1][0], made)
            made += last - first
            progress(made)
    return state, jax.tree.map(_mean, *outcomes)


def check(network: Network, start: Trained, phases: Sequence[Phase], dataset: Dataset) -> None:
    """Walks through the phases by shape alone, so that a method that does not fit fails at once.

    Raises:
      ValueError: no phases, or whatever a phase objects to, such as a pattern without a match.
    """
    if not phases:
        raise ValueError("phases is empty; a method has at least one phase.")
    remembered = None
    for number, phase in enumerate(phases):
        if phase.remembers:
            remembered = start.variables
        begin_phase = functools.partial(begin, network, phase, draw=(0, number))
        state = jax.eval_shape(
            begin_phase, start, remembered, _examples(dataset, phase.examples, 0)
        )
        start = jax.eval_shape(functools.partial(end, phase), state)


def _key(draw: tuple[int, int]) -> jax.Array:
    """Of (seed, phase). Made where it is used, for an array of one process is unknown to others."""
    seed, phase = draw
    return jax.random.fold_in(jax.random.key(seed), phase)


def _on_host(trained: Trained) -> Trained:
    """Copies every process can use on its own devices."""
    return jax.tree.map(np.asarray, trained)


def _examples(dataset: Dataset, number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of some examples, the same on all processes."""
    chosen = batches.some(len(dataset), number, seed)
    return dataset.images[chosen], dataset.labels[chosen]


def begin(
    network: Network,
    phase: Phase,
    current: Trained,
    remembered: Any,
    examples: tuple[jax.Array, jax.Array],
    *,
    draw: tuple[int, int],
) -> TrainState:
    """The state in which a phase begins.

    Args:
      network: the architecture.
      phase: the phase.
      current: what the one before it left.
      remembered: the variables of an earlier network, or None.
      examples: images and labels for the evidence, perhaps none.
      draw: (seed, number of the phase), of its random numbers.
    """
    params = current.variables["params"]
    collections = {**(remembered if phase.rewinds else current.variables)}
    del collections["params"]
    known = evidence(network, current.variables, phase.objective, *examples, _key(draw))
    trainable, auxiliary, mask = phase.begin(Start(params, current.mask, remembered, known))
    opt_state = phase.optimizer(mask).init(trainable)
    return TrainState(jnp.zeros((), jnp.int32), trainable, auxiliary, opt_state, collections)


def end(phase: Phase, state: TrainState) -> Trained:
    """The network that a phase has come to."""
    params = phase.materialize(state.trainable, state.auxiliary)
    mask = phase.mask(state.trainable, state.auxiliary, state.opt_state)
    return Trained({"params": params, **state.collections}, mask)


def compile_steps(network, phase: Phase, mask: Any, draw: tuple[int, int], shift: int, flip: bool):
    """The steps [first, last) of K, as one program for all `first` and `last`.

    Returns:
      `(state, (images [K, B, ...], labels [K, B]), first, last, shown) ->
      (state, (losses [K], metrics))`; all K steps by default. `shown` are images and labels for the
      evidence, none by default. What other steps have in the results has no meaning.
    """
    # Which mask is given here does not matter: the one in force is in the optimiser's state.
    optimizer = optax.with_extra_args_support(phase.optimizer(mask))

    def step(state: TrainState, examples, shown):
        images, labels = examples
        step_key = jax.random.fold_in(_key(draw), state.step)
        augment_key, objective_key, evidence_key = jax.random.split(step_key, 3)
        images = images.astype(jnp.float32) / 255
        images = augment.augment(augment_key, images, shift=shift, flip=flip)

        def loss_of(trainable):
            params = phase.materialize(trainable, state.auxiliary)
            variables = {"params": params, **state.collections}
            return phase.objective(network, variables, images, labels, objective_key)

        (loss, (collections, metrics)), grads = jax.value_and_grad(loss_of, has_aux=True)(
            state.trainable
        )
        known = evidence(network, collections, phase.objective, *shown, evidence_key)
        updates, opt_state = optimizer.update(
            grads, state.opt_state, state.trainable, evidence=known
        )
        trainable = optax.apply_updates(state.trainable, updates)
        trainable, auxiliary = phase.update(trainable, state.auxiliary, state.step)
        state = TrainState(state.step + 1, trainable, auxiliary, opt_state, collections)
        return state, (loss, metrics)

    @functools.partial(jax.jit, donate_argnums=0)
    def run(state, examples, first=0, last=None, shown=None):
        steps = len(examples[1])
        shown = jax.tree.map(lambda leaf: leaf[0, :0], examples) if shown is None else shown
        # JAX remembers this trace: `canonical` below asks for the same one.
        row = jax.eval_shape(step, state, _at(examples, 0), shown)[1]
        rows = jax.tree.map(lambda leaf: jnp.zeros((steps, *leaf.shape), leaf.dtype), row)

        def body(i, carry):
            state, rows = carry
            state, row = canonical(step)(state, _at(examples, i), shown)
            return state, jax.tree.map(lambda each, new: each.at[i].set(new), rows, row)

        return jax.lax.fori_loop(first, steps if last is None else last, body, (state, rows))

    return run


def _epochs_made(phases: Sequence[Phase], resumed: checkpoints.Position | None) -> int:
    if resumed is None:
        return 0
    return sum(phase.epochs for phase in phases[: resumed.phase]) + resumed.epoch


def _at(tree: Any, index: jax.Array | int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _mean(*parts: np.ndarray) -> float:
    return float(np.concatenate(parts).mean())


def _slice(tree: Any, first: int, last: int) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[first:last], tree)


def _require_finite_losses(losses: np.ndarray, first_step: int) -> None:
    if not np.isfinite(losses).all():
        bad = int(np.flatnonzero(~np.isfinite(losses))[0])
        raise DivergedError(
            f"loss is {losses[bad]} at step {first_step + bad}; the last checkpoint is kept. "
            "Lower the learning rate, or look at the data."
        )


def _require_finite(variables: Variables, trainable: Any, last_step: int) -> None:
    """The loss of a step knows nothing of its update: the last one shows only here."""
    for path, leaf in (trees.flatten(variables) | trees.flatten({"trainable": trainable})).items():
        if not np.isfinite(np.asarray(leaf)).all():
            raise DivergedError(
                f"{path} is not finite after step {last_step}; the last checkpoint is kept. "
                "Lower the learning rate, or look at the data."
            )
