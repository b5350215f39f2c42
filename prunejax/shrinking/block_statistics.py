"""Statistics of residual blocks: of what they add, and of what the network says without them."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import trees
from prunejax.pruning.activations import ablation, maps
from prunejax.pruning.criteria.maps import CKA, EXPECTED_ABS, HRANK, KL, PLS_VIP
from prunejax.pruning.evidence import widened
from prunejax.shrinking import executor, residual, structure
from prunejax.shrinking.shrunk import shape_of
from prunejax.shrinking.structure import Structure

# Where `_OneLeftOut` finds, among the variables, the number of the block; -1 stands for none.
NUMBER = "left_out"


# -- what the blocks add: (classifier, names, images, labels, batch size) -> [blocks]


def _expected_abs(classifier, names, images, labels, batch_size):
    del labels
    found = _per_image(classifier, names, maps.mean_abs, images, batch_size)
    return [x.mean() for x in found]


def _hrank(classifier, names, images, labels, batch_size):
    del labels
    found = _per_image(classifier, names, _share_of_rank, images, batch_size)
    return [x.mean() for x in found]


def _pls_vip(classifier, names, images, labels, batch_size):
    pooled = _per_image(classifier, names, maps.maximum, images, batch_size)
    importance = maps.vip(np.concatenate(pooled, axis=1), np.asarray(labels))
    ends = np.cumsum([x.shape[1] for x in pooled])[:-1]
    return [part.mean() for part in np.split(importance, ends)]


def _per_image(classifier, names, statistic, images, batch_size) -> list[np.ndarray]:
    """For each block `[N, channels]`: a statistic of f(x)."""
    own = (classifier.apply_fn, names, statistic, batch_size)
    return [np.asarray(x) for x in _statistics(*own, classifier.variables, images)]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _statistics(network, names, statistic, batch_size, variables, images):
    def of_batch(images):
        traced = structure.trace(network, variables, shape_of(images))
        branches = [block.branch for block in residual.chosen(traced, names)]
        program = traced.program._replace(outputs=branches)
        values = _run(traced._replace(program=program), variables, images)
        axes = [_channel_axis(traced, branch) for branch in branches]
        return [
            statistic(widened(jnp.moveaxis(value, axis, -1)))
            for value, axis in zip(values, axes, strict=True)
        ]

    return maps.in_batches(of_batch, images, batch_size)


def _channel_axis(traced: Structure, variable: Any) -> int:
    """The axis whose positions a layer makes; the last one where none is known."""
    labels = traced.channels.labels[variable]
    made = [
        i for i, own in enumerate(labels) if own is not None and traced.channels.made[own].any()
    ]
    return made[-1] if made else len(labels) - 1


def _share_of_rank(values: jax.Array) -> jax.Array:
    return maps.rank(values) / max(values.shape[1:-1], default=1)


# -- the network without a block: (classifier, names, images, labels, batch size) -> [blocks]


def _kl(classifier, names, images, labels, batch_size):
    del labels
    network = _OneLeftOut(classifier.apply_fn, names)
    moved = _moved(
        network,
        ablation.log_probabilities,
        ablation.divergence,
        batch_size,
        classifier.variables,
        images,
    )
    return moved.mean(axis=0)


def _cka(classifier, names, images, labels, batch_size):
    del labels, batch_size  # it is no mean over images
    network = _OneLeftOut(classifier.apply_fn, names)
    return _moved(
        network,
        ablation.similarities,
        ablation.dissimilarity,
        len(images),
        classifier.variables,
        images,
    )


@dataclasses.dataclass(frozen=True)
class _OneLeftOut:
    """A network without the one of its blocks that `variables[NUMBER]` says.

    A number, so that one program serves all blocks: x + f(x) is computed, and x taken instead.
    """

    network: Callable[[Any, jax.Array], jax.Array]
    names: tuple[str, ...]

    def __call__(self, variables: Any, images: jax.Array) -> jax.Array:
        number = variables[NUMBER]
        variables = {name: tree for name, tree in variables.items() if name != NUMBER}
        traced = structure.trace(self.network, variables, shape_of(images))
        blocks = enumerate(residual.chosen(traced, self.names))
        switched = {block.output: (block.shortcut, number == i) for i, block in blocks}
        (logits,) = _run(traced, variables, images, switched)
        return logits


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _moved(network, look, distance, batch_size, variables, images):
    """`[..., blocks]`: how far what is seen of the network moves when a block goes.

    Args:
      network: a `_OneLeftOut`.
      look: `(network, variables, images) -> array`.
      distance: `(of the whole network, without the block) -> [...]`.
    """

    def of_batch(images):
        def seen(number):
            return look(network, {**variables, NUMBER: number}, images)

        # The whole network is looked at by the same code, so that what is the same is so exactly.
        found = jax.lax.map(seen, jnp.arange(-1, len(network.names)))
        moved = jax.lax.map(functools.partial(distance, found[0]), found[1:])
        return jnp.moveaxis(moved, 0, -1)

    return maps.in_batches(of_batch, images, batch_size)


def _run(
    traced: Structure, variables: Any, images: jax.Array, switched: Any = None
) -> list[jax.Array]:
    """The outputs of the traced program, with all its channels."""
    inputs = {traced.variables[path]: x for path, x in trees.flatten(variables).items()}
    inputs[traced.images] = images
    everything = np.ones(traced.number, bool)
    return executor.run(traced.program, traced.channels, everything, inputs, switched=switched)


class Statistic(NamedTuple):
    """How a criterion of data scores blocks.

    Attributes:
      of_blocks: (classifier, names, images `[N, ...]`, labels `[N]`, batch size) -> `[blocks]`.
      fewest: so many images it needs.
    """

    of_blocks: Callable[..., Sequence[Any]]
    fewest: int = 1


OF_DATA = {
    EXPECTED_ABS: Statistic(_expected_abs),
    HRANK: Statistic(_hrank),
    PLS_VIP: Statistic(_pls_vip, fewest=2),
    KL: Statistic(_kl),
    CKA: Statistic(_cka, fewest=2),
}
