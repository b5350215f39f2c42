"""Choosing residual blocks to leave out: those that matter least as a whole."""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import checks, trees
from prunejax.classifier import Classifier
from prunejax.pruning.evidence import Evidence
from prunejax.pruning.pruner import Pruner, require_numbers
from prunejax.shrinking import residual, structure
from prunejax.shrinking.block_statistics import OF_DATA
from prunejax.shrinking.channel_pruning import takes_first, unit_scores
from prunejax.shrinking.residual import Block
from prunejax.shrinking.without_blocks import remove_blocks


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
    criterion = pruner.scorer
    if criterion in OF_DATA:
        images, labels = _data(evidence)
        if images.shape[1:] != tuple(image_shape):
            raise ValueError(
                f"evidence.batches holds images of shape {images.shape[1:]}; image_shape is "
                f"{tuple(image_shape)}."
            )
        fewest = OF_DATA[criterion].fewest
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
    traced = structure.structure_of(classifier.apply_fn, classifier.variables, image_shape)
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
    criterion = pruner.scorer
    if criterion in OF_DATA:
        images, labels = _data(evidence)
        of_blocks = OF_DATA[criterion].of_blocks
        found = of_blocks(classifier, tuple(names), images, labels, batch_size)
        require_numbers([jnp.asarray(found)], criterion)
        return dict(zip(names, map(float, found), strict=True))
    traced = structure.structure_of(classifier.apply_fn, classifier.variables, image_shape)
    last = {block.name: block.last for block in residual.chosen(traced, names)}
    axes = [(path, -1) for path in last.values()]
    units = unit_scores(classifier.params, pruner, axes, evidence)
    of_block = (lambda units: units.flat[0]) if takes_first(pruner) else np.mean
    return {name: float(of_block(units[last[name], -1])) for name in names}


def _data(evidence: Evidence) -> tuple[jax.Array, jax.Array]:
    images, labels = zip(*evidence.batches, strict=True)
    return jnp.concatenate(images), jnp.concatenate(labels)
