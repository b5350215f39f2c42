"""Several attacks one after another, each on the examples that all before it have left standing."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from prunejax import precision
from prunejax.attacks import programs, runner
from prunejax.attacks.attack import Attack, as_attacked
from prunejax.attacks.diagnostics import Diagnostics, Doubt, sentences
from prunejax.attacks.inputs import Inputs, validated
from prunejax.classifier import Classifier

# Where attacks without gradients break more than this share, gradients are doubted: AutoAttack's.
MASKED = 0.002


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cascade:
    """An ensemble whose result is the worst case for each example, at a given budget.

    Attributes:
      norm: of the budget.
      members: names and attacks in their order, all in this norm, and all targeted or none. A
        minimum-norm attack succeeds where its distance is within the budget.
      individual: every member sees all examples, so that its own robust accuracy is known too; by
        default only those that all before it have left standing. The ensemble's result is the same.

    Raises:
      ValueError: no members, names that are no strings or not all different, or attacks in another
        norm or of both kinds.
    """

    norm: str
    members: tuple[tuple[str, Attack], ...]
    individual: bool = False

    minimum_norm: ClassVar[bool] = False

    def __post_init__(self):
        if not self.members:
            raise ValueError("members is empty; a cascade has at least one attack.")
        if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in self.members):
            raise ValueError(
                f"members is {self.members!r}; pairs of a name and an attack are needed, as in "
                '(("pgd", PGD()),).'
            )
        if not isinstance(self.individual, bool | np.bool_):
            raise ValueError(f"individual is {self.individual!r}; it must be True or False.")
        names = [name for name, _ in self.members]
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"members has the names {names}; strings are needed.")
        if len(set(names)) < len(names):
            raise ValueError(f"members has the names {names}; each may appear once.")
        for name, attack in self.members:
            if not isinstance(attack, Attack):
                raise ValueError(
                    f"members has {name!r}, which is {attack!r}; an attack is needed, "
                    "attacks.create(name) makes one."
                )
            if attack.norm != self.norm:
                raise ValueError(
                    f"members has {name!r} in {attack.norm!r}; the budget is in {self.norm!r}."
                )
        aimed = [name for name, attack in self.members if attack.targeted]
        if aimed and len(aimed) < len(names):
            others = [name for name in names if name not in aimed]
            raise ValueError(
                f"members has {aimed}, targeted, beside {others}, untargeted; labels are classes "
                "to reach or classes to leave, use attacks of one kind."
            )

    @property
    def targeted(self) -> bool:
        """Whether labels are the classes to reach, not the ones to leave."""
        return self.members[0][1].targeted

    @property
    def after_gradients(self) -> tuple[str, ...]:
        """Names of the members without gradients that come after one with gradients."""
        blind = [not attack.uses_gradients for _, attack in self.members]
        names = (name for name, _ in self.members)
        return tuple(name for n, name in enumerate(names) if blind[n] and not all(blind[:n]))


class CascadeResult(NamedTuple):
    """What a cascade found, as numpy arrays with one entry an example.

    Attributes:
      images, success, distance, forwards, backwards, sizes: as in `AttackResult`; the image is the
        first attack's that succeeded.
      diagnostics: of the first member, which sees all examples, also `loss` and `asked_loss`;
        `diverged`, `outside` and `unconfirmed` of all members together; `weaker` are the examples
        that one step of any member finds within the budget and none of the attacks. What there is
        to doubt in the others is in `members`: ask the result for `warnings`, not these.
      by: number of the member that succeeded first; -1 for none, or where none was needed.
      members: for each name the numbers of the examples it saw, and its own result on them; without
        those for whom the others had left nothing.
      broken: what fell to a member without gradients after members with gradients had failed.
    """

    images: np.ndarray
    success: np.ndarray
    distance: np.ndarray
    forwards: np.ndarray
    backwards: np.ndarray
    sizes: dict[str, np.ndarray]
    diagnostics: Diagnostics
    by: np.ndarray
    members: dict[str, tuple[np.ndarray, runner.AttackResult]]
    broken: np.ndarray

    def warnings(self) -> list[str]:
        """Reasons to doubt the result: those of all members, and what they say of each other.

        That a member is weaker than one step counts only where no other member was stronger.
        """
        return sentences([*self.doubts(), *masked(self.broken)])

    def doubts(self) -> list[Doubt]:
        """The reasons of all members, without what they say of each other."""
        found = []
        for name, (seen, result) in self.members.items():
            weaker = result.diagnostics.weaker & ~self.success[seen]
            doubts = result.diagnostics._replace(weaker=weaker).doubts()
            found += [doubt._replace(member=name) for doubt in doubts]
        return found


def broken_in(result: runner.AttackResult | CascadeResult, attack: Attack | Cascade) -> np.ndarray:
    """`CascadeResult.broken`, of a result of `attack` or of some of its members only.

    Nowhere of one attack by itself, which comes after no other.
    """
    if not isinstance(result, CascadeResult):
        return np.zeros(len(result.success), bool)
    return _by_any(result.by, result.members, attack.after_gradients)


def _by_any(by: np.ndarray, members: Iterable[str], names: Sequence[str]) -> np.ndarray:
    """`[N]` whether the member by whose number it fell has one of these names."""
    return np.isin(by, [number for number, name in enumerate(members) if name in names])


def masked(broken: np.ndarray) -> list[Doubt]:
    """The doubt in gradients where attacks without them are stronger.

    Args:
      broken: `[N]` as in `CascadeResult`, of all examples of an evaluation: their share counts.
    """
    number = int(broken.sum())
    if number <= MASKED * broken.size:
        return []
    sentence = (
        "{number} of {among} examples fell to an attack without gradients after all gradient "
        "attacks before it had failed: gradients may be masked."
    )
    return [Doubt("masked", sentence, number, broken.size)]


def run(
    attack: Attack | Cascade,
    classifier: Classifier,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    key: jax.Array,
    eps: float | np.ndarray | None = None,
    indices: np.ndarray | None = None,
    batch_size: int = 256,
    devices: Sequence[jax.Device] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> runner.AttackResult | CascadeResult:
    """Attacks every example, with one attack or a cascade of them.

    An example that the classifier gets wrong already is not attacked: its distance is 0. Success is
    confirmed by a fresh forward pass on the returned image, within ball and box. Every member of a
    cascade starts from the clean images, with the same key as if it ran alone.

    Args:
      attack: which attack or cascade.
      classifier: maps images in [0, 1] to logits.
      images: `[N, ...]` floats in [0, 1].
      labels: `[N]` integers: the true classes, or the classes to reach for a targeted attack.
      key: a single key; each example's own is derived from it and from its index.
      eps: budget in the attack's norm, a number or `[N]`; needed by fixed-budget attacks and
        cascades. For minimum-norm attacks None.
      indices: `[N]` what identifies each example (its number in the test set, say), so that its
        random numbers do not depend on which others are attacked with it; default 0 to N - 1.
      batch_size: lanes at most; half of them, and so on, where that is enough for all examples.
      devices: to share the lanes; all local ones by default.
      progress: called with (examples done, examples in all) now and then; a cascade counts them
        once for each member.

    Returns:
      What was found, and reasons to doubt it.

    Raises:
      ValueError: an argument out of range; raised before anything is compiled.
    """
    given = checked(
        attack, classifier, images, labels,
        key=key, eps=eps, indices=indices, batch_size=batch_size, devices=devices,
    )  # fmt: skip
    return run_on(attack, classifier, given, progress)


@precision.single()
def checked(
    attack: Attack | Cascade,
    classifier: Classifier,
    images: np.ndarray,
    labels: np.ndarray,
    **options,
) -> Inputs:
    """`validated`, and every member asked for the shapes of its state: what cannot take the images
    raises here. Nothing is compiled.
    """
    given = validated(attack, classifier, images, labels, **options)
    # The arguments lie as in `runner.run`, which traces nothing again.
    replicated = NamedSharding(given.mesh, PartitionSpec())
    classifier, key = jax.device_put((classifier, given.key), replicated)
    first = np.zeros(given.width, np.int32)
    labels, indices, eps = (part[first] for part in (given.labels, given.indices, given.eps))
    for _, member in members_of(attack):
        attacked, inputs = as_attacked(member, classifier, given.images)
        examples = inputs[first], labels, indices, first, eps
        programs.compiled(member, given.mesh).start.eval_shape(attacked, examples, key)
    return given


def members_of(attack: Attack | Cascade) -> tuple[tuple[str, Attack], ...]:
    """Names and attacks of a cascade; an attack by itself has no name."""
    return attack.members if isinstance(attack, Cascade) else (("", attack),)


def run_on(
    attack: Attack | Cascade,
    classifier: Classifier,
    given: Inputs,
    progress: Callable[[int, int], None] | None = None,
) -> runner.AttackResult | CascadeResult:
    """`run` on arguments that have been checked; all that it runs has as many lanes."""
    if isinstance(attack, Attack):
        return runner.run(attack, classifier, given, progress)
    number, found, members = len(given.images), None, {}
    by = np.full(number, -1)
    for place, (name, member) in enumerate(attack.members):
        everyone = found is None or attack.individual
        standing = np.arange(number) if everyone else np.flatnonzero(~found.success)
        if not len(standing):
            break

        def report(done, left, place=place):
            progress((place + 1) * number - left + done, len(attack.members) * number)

        some = given.of(standing)
        result = runner.run(member, classifier, some, progress and report)
        if member.minimum_norm:
            result = _within(result, some.images, some.eps)
        members[name] = standing, result
        if found is None:
            found = jax.tree.map(
                lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, result
            )
            first = np.ones(number, bool)
        else:
            first = ~found.success[standing]
            for whole, part in zip(found[:3], result[:3], strict=True):
                whole[standing[first]] = part[first]
            for whole, part in zip(found[3:5], result[3:5], strict=True):
                whole[standing] += part
            for norm, size in result.sizes.items():
                found.sizes[norm][standing[first]] = size[first]
        by[standing[first & result.success & (result.distance > 0)]] = place
    if progress is not None:
        progress(len(attack.members) * number, len(attack.members) * number)
    found = found._replace(diagnostics=_merged(attack, found.success, members))
    broken = _by_any(by, members, attack.after_gradients)
    return CascadeResult(*found, by=by, members=members, broken=broken)


def _merged(cascade: Cascade, success: np.ndarray, members: dict) -> Diagnostics:
    """The diagnostics of the whole, see `CascadeResult`."""
    weaker = np.zeros(len(success), bool)
    for name, attack in cascade.members:
        # The one step beside a minimum-norm attack knows no budget, it proves nothing within it.
        if name in members and not attack.minimum_norm:
            seen, result = members[name]
            weaker[seen] |= result.diagnostics.weaker & ~success[seen]
    each = [result.diagnostics for _, result in members.values()]
    return counted_together(each)._replace(weaker=weaker)


def counted_together(each: Sequence[Diagnostics]) -> Diagnostics:
    """The first of several, with the attempts and images that all of them count."""
    counts = ("diverged", "outside", "unconfirmed")
    return each[0]._replace(**{n: sum(getattr(doubts, n) for doubts in each) for n in counts})


def _within(
    result: runner.AttackResult, images: np.ndarray, budgets: np.ndarray
) -> runner.AttackResult:
    """What a minimum-norm attack is worth at these budgets."""
    success = result.success & (result.distance <= budgets)
    keep = success.reshape(-1, *(1,) * (images.ndim - 1))
    return result._replace(
        images=np.where(keep, result.images, images).astype(np.float32),
        success=success,
        distance=np.where(success, result.distance, np.inf).astype(np.float32),
        sizes={norm: np.where(success, size, 0) for norm, size in result.sizes.items()},
    )
