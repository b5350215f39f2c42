"""What a round of experiments.shrink takes away: channels, blocks, or what a mask removes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import config_dict

from experiments import sensitivity
from prunejax import pruning, shrinking, trees
from prunejax.classifier import Classifier


class Stage(NamedTuple):
    """A network between two rounds, or in the middle of one.

    Attributes:
      classifier: the network.
      mask: of its parameters, what pruning has left of them.
      row: what it costs and gets right, as in rounds.json; None before it is fine-tuned.
    """

    classifier: Classifier
    mask: Any
    row: Mapping[str, Any] | None = None

    @property
    def params(self) -> Any:
        """Those of the classifier."""
        return self.classifier.params


class Views(NamedTuple):
    """What a choice may look at besides the weights.

    Attributes:
      evidence_of: a classifier -> what criteria may look at.
      accuracy_of: a classifier -> parameters of it -> its robust accuracy on held-out examples.
      densities: at which that is measured where the allocation is by sensitivity.
      progress: called with (accuracies measured, accuracies to measure).
    """

    evidence_of: Callable[[Classifier], pruning.Evidence]
    accuracy_of: Callable[[Classifier], Callable[[Any], float]]
    densities: Sequence[float] = ()
    progress: Callable[[int, int], None] = lambda measured, wanted: None


def remove(
    now: Stage, settings: config_dict.ConfigDict, image_shape: tuple[int, ...], views: Views
) -> Stage:
    """The network after a round's removal, and what is left of its mask.

    Args:
      now: the network.
      settings: `config.shrinking`.
      image_shape: of one image.
      views: of the run's data.

    Raises:
      ValueError: what cannot be chosen or removed, or nothing to remove.
    """
    without = REMOVE[settings.remove](now, settings, image_shape, views)
    smaller = without(now.classifier, check=True)
    if trees.size(smaller.params) == trees.size(now.params):
        raise ValueError(
            f"shrinking.remove is {settings.remove!r}, which takes nothing away; ask for a larger "
            "shrinking.share or a smaller shrinking.multiple, or, of 'masked', take an init_from "
            "whose mask removes whole channels (method.granularity = 'filter', say)."
        )
    return Stage(smaller, _mask_without(without, now.classifier, now.mask))


def pruner(settings: config_dict.ConfigDict) -> pruning.Pruner:
    """How channels or blocks are scored, and how many channels go of which layers.

    Where that is to be measured, the allocation is uniform.
    """
    measured = settings.allocation == sensitivity.ALLOCATION
    return pruning.Pruner(
        criterion=settings.criterion,
        allocation="uniform" if measured else settings.allocation,
        include=settings.include,
        exclude=settings.exclude,
        aggregate=settings.aggregate,
    )


def _channels(now, settings, image_shape, views):
    classifier, chosen = now.classifier, pruner(settings)
    traced = shrinking.structure_of(classifier.apply_fn, classifier.variables, image_shape)
    looked = {"current": now.mask, "evidence": views.evidence_of(classifier)}
    if settings.allocation == sensitivity.ALLOCATION:
        table = shrinking.channel_sensitivity.measure(
            traced,
            classifier.variables,
            chosen,
            views.densities,
            views.accuracy_of(classifier),
            progress=views.progress,
            **looked,
        )
        found = shrinking.channel_sensitivity.allocation(traced, table, 1 - settings.share)
        chosen = dataclasses.replace(chosen, allocation=found)
    gone = shrinking.channel_mask(
        traced,
        classifier.variables,
        settings.share,
        chosen,
        multiple=settings.multiple,
        **looked,
    )
    return lambda of, check: shrinking.shrink(of, gone, image_shape, check=check)


def _blocks(now, settings, image_shape, views):
    smaller, lowest = now.classifier, []
    for number in [1] * settings.blocks if settings.rescore else [settings.blocks]:
        if lowest:
            smaller = shrinking.remove_blocks(now.classifier, lowest, image_shape)
        lowest += shrinking.lowest_blocks(
            smaller, image_shape, number, pruner(settings), views.evidence_of(smaller)
        )
    return lambda of, check: shrinking.remove_blocks(of, lowest, image_shape)


def _masked(now, settings, image_shape, views):
    options = {"multiple": settings.multiple, "carry": True}
    return lambda of, check: shrinking.shrink(of, now.mask, image_shape, check=check, **options)


# By name (stage, settings, image shape, views) -> what makes a classifier smaller: a function
# of it and of whether to compare both networks.
REMOVE = {"channels": _channels, "blocks": _blocks, "masked": _masked}


def _mask_without(without, classifier: Classifier, mask: Any) -> Any:
    """What is left of the mask, in the place of the parameters, where `without` removes some."""
    whole = jax.tree.map(
        lambda p, keep: jnp.broadcast_to(keep, p.shape).astype(p.dtype), classifier.params, mask
    )
    left = without(classifier.with_params(whole), check=False).params
    # Whole leaves as `masks.dense` has them.
    return jax.tree.map(lambda keep: jnp.array(True) if keep.all() else keep != 0, left)
