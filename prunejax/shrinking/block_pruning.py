"""Choosing residual blocks to leave out: those that matter least as a whole."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import checks, trees
from prunejax.classifier import Classifier
from prunejax.pruning.activations import ablation, maps
from prunejax.pruning.criteria.maps import CKA, EXPECTED_ABS, HRANK, KL, PLS_VIP
from prunejax.pruning.evidence import Criterion, Evidence, widened
from prunejax.pruning.pruner import Pruner
from prunejax.shrinking import executor, residual, structure
from prunejax.shrinking.channel_pruning import aggregate_of, criterion_of, unit_scores
from prunejax.shrinking.residual import Block
from prunejax.shrinking.shrunk import shape_of
from prunejax.shrinking.structure import Structure
from prunejax.shrinking.without_blocks import remove_blocks

# Where `_OneLeftOut` finds, among the variables, the number of the block; -1 stands for none.
NUMBER = "left_out"


def block_scores(
    classifier: Classifier,
    image_shape: tuple[int, ...],
    pruner: Pruner | None = None,
    evidence: Evidence | None = None,
    *,
    batch_size: int = 256,
) -> dict[str, float]:
    """What each residual block x + f(x) with an identity shortcut is worth; higher is kept.

    By the pruner's criterion, with f(x) the map that the block adds: the output of f's last
    normalisation, which is what Jordao and Pedrini (2021) score, or of its last layer.

    - "expected_abs": the mean over images, positions and channels of |f(x)|, in [0, inf).
    - "hrank": the mean over images and channels of rank(f(x)_c) / max(H, W), in [0, 1].
    - "pls_vip": the mean over channels of their VIP, of one partial least squares of the labels on
      the maxima over positions of all blocks' f(x); in [0, sqrt(p)] for p channels in all, and the
      squares of the channels' VIPs sum to p.
    - "kl": `mean_x sum_c q (log q - log p)`, p the network's softmax outputs, q those without the
      block; in nats, in [0, inf).
    - "cka": 1 - the linear CKA of the features before the last layer with and without the block, in
      [0, 1].
    - All others: the mean score of the units of f's last layer; by the aggregate "first", as drawn
      at random, that of the first unit.

    The last two look at the network that `remove_blocks` makes: one compiled program for all
    blocks. A block that adds nothing scores exactly 0 by "expected_abs", "hrank", "kl" and "cka".

    Args:
      classifier: the network.
      image_shape: of one image.
      pruner: its criterion and aggregate. A block is left alone, and not scored, where any of its
        weights is excluded.
      evidence: batches of (images, labels) for criteria that look at data, and what others need;
        the network and its variables are the classifier's.
      batch_size: so many images at a time; the scores do not depend on it. CKA takes all at once.

    Returns:
      The score of each block by name, in the order of the network. Remove the lowest with
      `remove_blocks`.

    Raises:
      ValueError: no such block, evidence that the criterion lacks, no images or such of another
        shape, labels of another number, or a pattern without a match.
    """
    pruner = Pruner() if pruner is None else pruner
    evidence = _checked(classifier, image_shape, pruner, evidence, batch_size)
    names = tuple(_candidates(classifier, image_shape, pruner))
    return _scores(classifier, image_shape, names, pruner, evidence, batch_size)


def lowest_blocks(
    classifier: Classifier,
    image_shape: tuple[int, ...],
    number: int,
    pruner: Pruner | None = None,
    evidence: Evidence | None = None,
    *,
    rescore: bool = False,
    batch_size: int = 256,
) -> tuple[str, ...]:
    """The blocks with the lowest `block_scores`, lowest first; of equal ones the first.

    Of blocks inside a block none is chosen after it, for they go with it.

    names = shrinking.lowest_blocks(classifier, (32, 32, 3), 2, Pruner("kl"), evidence)
    small = shrinking.remove_blocks(classifier, names, (32, 32, 3))

    Jordao and Pedrini (2021) remove one block a round and fine-tune before the next is scored.

    Args:
      classifier, image_shape, pruner, evidence, batch_size: as in `block_scores`.
      number: how many blocks.
      rescore: score the others anew after each block, in the network without it and by what
        changes against that one, instead of all once.

    Raises:
      ValueError: as in `block_scores`, more blocks than can go one by one, or evidence that belongs
        to the whole network where smaller ones are to be scored.
    """
    pruner = Pruner() if pruner is None else pruner
    if rescore and number > 1:
        _refuse_what_does_not_shrink(evidence)
    evidence = _checked(classifier, image_shape, pruner, evidence, batch_size)
    blocks = _candidates(classifier, image_shape, pruner)
    checks.integer("number", number, least=0)
    if number > len(blocks):
        raise ValueError(
            f"number is {number}; the network has {len(blocks)} residual blocks to remove: "
            f"{', '.join(blocks)}."
        )
    scores = _scores(classifier, image_shape, tuple(blocks), pruner, evidence, batch_size)
    lowest: list[str] = []
    while len(lowest) < number:
        left = [name for name in blocks if not _is_gone(blocks[name], map(blocks.get, lowest))]
        if not left:
            raise ValueError(
                f"number is {number}; without {', '.join(lowest)} no residual block is left: the "
                "others are inside of these."
            )
        if lowest and rescore:
            small = remove_blocks(classifier, lowest, image_shape)
            own = evidence._replace(network=small.apply_fn, variables=small.variables)
            scores = _scores(small, image_shape, left, pruner, own, batch_size)
        lowest.append(min(left, key=scores.get))
    return tuple(lowest)


def _is_gone(block: Block, removed: Iterable[Block]) -> bool:
    """Whether a block is one of the removed ones, or inside one."""
    return any(set(block.variables) <= set(other.variables) for other in removed)


def _checked(classifier, image_shape, pruner, evidence, batch_size) -> Evidence:
    """The evidence with the classifier as its network, once it is known to be enough."""
    structure.require_params(classifier.variables)
    evidence = (evidence or Evidence()).keyed()
    evidence = evidence._replace(
        network=classifier.apply_fn,
        variables=classifier.variables,
        input_shape=tuple(image_shape),
        allowed=trees.prunable(classifier.params, pruner.include, pruner.exclude),
    )
    pruner.check(evidence)
    checks.integer("batch_size", batch_size, least=1)
    if criterion_of(pruner) in OF_DATA:
        images, labels = _data(evidence)
        if images.shape[1:] != tuple(image_shape):
            raise ValueError(
                f"evidence.batches holds images of shape {images.shape[1:]}; image_shape is "
                f"{tuple(image_shape)}."
            )
        criterion = criterion_of(pruner)
        fewest = 2 if criterion in (CKA, PLS_VIP) else 1
        if len(images) < fewest:
            raise ValueError(
                f"evidence.batches holds {len(images)} images; criterion {criterion.name!r} needs "
                f"{fewest} at least."
            )
        if len(labels) != len(images):
            raise ValueError(
                f"evidence.batches holds {len(labels)} labels for {len(images)} images."
            )
    return evidence


def _refuse_what_does_not_shrink(evidence: Evidence | None) -> None:
    for name in ("loss", "grads", "scores"):
        if evidence is not None and getattr(evidence, name) is not None:
            raise ValueError(
                f"evidence.{name} is that of the whole network, and rescore looks at smaller ones; "
                "choose one block at a time, remove it, and give evidence of what is left."
            )


def _candidates(
    classifier: Classifier, image_shape: tuple[int, ...], pruner: Pruner
) -> dict[str, Block]:
    """By name the blocks that may be left out."""
    traced = structure.of(classifier.apply_fn, classifier.variables, image_shape)
    blocks = residual.blocks(traced)
    if not blocks:
        raise ValueError(
            "classifier has no residual block with an identity shortcut; nothing can be left out "
            "as a whole."
        )
    params = classifier.params
    left_alone = set(trees.prunable(params)).difference(
        trees.prunable(params, pruner.include, pruner.exclude)
    )
    allowed = {
        block.name: block
        for block in blocks
        if left_alone.isdisjoint(path.removeprefix("params/") for path in block.variables)
    }
    if not allowed:
        raise ValueError(
            f"pruner leaves all of {', '.join(block.name for block in blocks)} alone: include is "
            f"{pruner.include}, exclude {pruner.exclude}. A block needs all of its weights."
        )
    return allowed


def _scores(
    classifier: Classifier,
    image_shape: tuple[int, ...],
    names: Sequence[str],
    pruner: Pruner,
    evidence: Evidence,
    batch_size: int,
) -> dict[str, float]:
    """Of the blocks with these names."""
    criterion = criterion_of(pruner)
    if criterion in OF_DATA:
        images, labels = _data(evidence)
        found = OF_DATA[criterion](classifier, tuple(names), images, labels, batch_size)
        return dict(zip(names, map(float, found), strict=True))
    traced = structure.of(classifier.apply_fn, classifier.variables, image_shape)
    last = {block.name: block.last for block in residual.chosen(traced, names)}
    axes = [(path, -1) for path in last.values()]
    units = unit_scores(classifier.params, pruner, axes, evidence)
    of_block = np.mean if aggregate_of(pruner) != "first" else lambda units: units.flat[0]
    return {name: float(of_block(units[last[name], -1])) for name in names}


def _data(evidence: Evidence) -> tuple[jax.Array, jax.Array]:
    images, labels = zip(*evidence.batches, strict=True)
    return jnp.concatenate(images), jnp.concatenate(labels)


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
        network, _log_probabilities, _divergence, batch_size, classifier.variables, images
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


def _log_probabilities(network, variables, images):
    return jax.nn.log_softmax(widened(network(variables, images)))


def _divergence(p, q):
    return jnp.sum(jnp.exp(q) * (q - p), axis=-1)


def _run(
    traced: Structure, variables: Any, images: jax.Array, switched: Any = None
) -> list[jax.Array]:
    """The outputs of the traced program, with all its channels."""
    inputs = {traced.variables[path]: x for path, x in trees.flatten(variables).items()}
    inputs[traced.images] = images
    everything = np.ones(traced.number, bool)
    return executor.run(traced.program, traced.channels, everything, inputs, switched=switched)


OF_DATA: dict[Criterion, Callable[..., Sequence[Any]]] = {
    EXPECTED_ABS: _expected_abs,
    HRANK: _hrank,
    PLS_VIP: _pls_vip,
    KL: _kl,
    CKA: _cka,
}
