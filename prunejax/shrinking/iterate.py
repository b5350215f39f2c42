"""Remove a little, fine-tune, and again, until the network costs no more than it may."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from prunejax import trees
from prunejax.classifier import Classifier

MOST_ROUNDS = 100


class Round(NamedTuple):
    """What one round made.

    Attributes:
      number: counted from 1.
      classifier: the smaller network, fine-tuned.
      cost: what it costs.
    """

    number: int
    classifier: Classifier
    cost: float


def iterate(
    classifier: Classifier,
    *,
    remove: Callable[[Classifier], Classifier],
    finetune: Callable[[Classifier, int], Classifier],
    cost: Callable[[Classifier], float],
    at_most: float,
    first_round: int = 1,
) -> Iterator[Round]:
    """Rounds of removing and fine-tuning (Jordao & Pedrini 2021; Merkle et al. 2021).

        def remove(classifier):  # or lowest_blocks and remove_blocks
            traced = structure_of(classifier.apply_fn, classifier.variables, image_shape)
            return shrink(classifier, channel_mask(traced, classifier.variables, 0.1), image_shape)

    Args:
      classifier: to start from; where a run goes on, what its last round made.
      remove: a classifier -> one with fewer channels or blocks.
      finetune: (the smaller classifier, number of the round) -> the trained one.
      cost: a classifier -> its FLOPs, parameters, or seconds a batch.
      at_most: rounds end when the cost is no more than this.
      first_round: number of the next round.

    Yields:
      Each round when it is done; none where the classifier is cheap enough already.

    Raises (while rounds are made, not by the call):
      ValueError: a round that removes nothing, or a target that 100 rounds from the first one of
        this call have not reached.
    """
    now = cost(classifier)
    for number in range(first_round, first_round + MOST_ROUNDS):
        if now <= at_most:
            return
        smaller = remove(classifier)
        if trees.size(smaller.params) == trees.size(classifier.params):
            raise ValueError(
                f"remove takes nothing away in round {number}, at a cost of {now:g} with at most "
                f"{at_most:g} wanted; remove a larger share a round, or round up to less."
            )
        classifier = finetune(smaller, number)
        now = cost(classifier)
        yield Round(number, classifier, now)
    if now > at_most:
        raise ValueError(
            f"the cost is {now:g} after {MOST_ROUNDS} rounds, with at most {at_most:g} wanted; "
            "remove a larger share a round."
        )
