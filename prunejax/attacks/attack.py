"""What every attack is: hyperparameters, and pure functions init, step and result.

An attack is written for ONE example, an image without a batch axis; `jax.vmap` makes it a batch,
so that a result can depend neither on the batch's size nor on its order. `attacks.run` drives it.
In the docstrings of attacks `[...]` is the shape of that image, `[H, W, C]` or any other.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import checks, names, norms
from prunejax.attacks.goal import Goal, likeliest
from prunejax.classifier import Classifier

State = Any
Images = np.ndarray | jax.Array


class Found(NamedTuple):
    """What an attack found for one example, or for a batch with a leading axis.

    Attributes:
      image: `[...]` the adversarial image in [0, 1]; the clean one where nothing was found.
      success: boolean scalar, whether it is what the attacker wants.
      distance: float32 scalar, from the clean image, in the attack's norm; `inf` where nothing was
        found.
    """

    image: jax.Array
    success: jax.Array
    distance: jax.Array


class Differentiable(Protocol):
    """Maps images `[B, ...]` in [0, 1] to logits `[B, C]`."""

    def __call__(self, images: jax.Array) -> jax.Array: ...


class Passes(NamedTuple):
    """How often one example goes through the network."""

    forwards: int
    backwards: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attack:
    """Hyperparameters that all attacks share. Frozen and hashable: equal attacks share programs.

    Attributes:
      norm: in which the perturbation is measured, a key of `norms.NORMS`. "l0" counts features,
        each channel value by itself; "l0_pixels" pixels, however many of their channels change.
      steps: iterations, at least 1.
      restarts: independent tries for an example, at least 1, each with its own key; a fixed-budget
        attack stops at the first that succeeds, a minimum-norm attack keeps the nearest.
      targeted: labels are the classes to reach, not the ones to leave.
      targets: head for that many of the other classes, the likeliest first, each in tries of its
        own; leaving the label is a success all the same. 0: head for none in particular, which in
        most attacks means for the likeliest where they are: on linear networks of ten classes those
        of minimum norm end up to 1.4 times as far as the nearest boundary. An attack that sees
        decisions only refuses it.

    Raises:
      ValueError: a hyperparameter out of its range, a norm that the attack does not measure in,
        `targets` in a targeted attack, or restarts of one that draws nothing at random.
    """

    norm: str
    steps: int
    restarts: int = 1
    targeted: bool = False
    targets: int = 0

    # The norms it can measure in, and where it comes from.
    supported: ClassVar[tuple[str, ...]] = tuple(norms.NORMS)
    reference: ClassVar[str] = ""
    # A minimum-norm attack looks for the nearest adversarial example; the others need a budget.
    minimum_norm: ClassVar[bool] = False
    # Whether a try is random, so that another one may find something else.
    draws: ClassVar[bool] = True
    # A black-box attack only looks at outputs.
    uses_gradients: ClassVar[bool] = True
    # It treats all entries of an image alike, whatever its shape (in l0_pixels none does). It then
    # gets vectors: on CPUs the same arithmetic is up to seven times as fast as on images.
    entrywise: ClassVar[bool] = False
    # What `init`, a `step` and `result` cost.
    init_passes: ClassVar[Passes] = Passes(0, 0)
    step_passes: ClassVar[Passes] = Passes(1, 1)
    result_passes: ClassVar[Passes] = Passes(1, 0)

    def __post_init__(self):
        names.lookup("norm", self.norm, norms.NORMS)
        if self.norm not in self.supported:
            raise ValueError(
                f"norm is {self.norm!r}; {type(self).__name__} measures in "
                f"{' or '.join(map(repr, self.supported))}."
            )
        for field in dataclasses.fields(self):
            if field.init and field.type in (bool, "bool"):
                value = getattr(self, field.name)
                if not isinstance(value, bool | np.bool_):
                    raise ValueError(f"{field.name} is {value!r}; it must be True or False.")
        self._integers("steps", "restarts", least=1)
        self._integers("targets", least=0)
        if self.targeted and self.targets:
            raise ValueError(
                f"targets is {self.targets} in a targeted attack; there the labels are the "
                "targets, use one or the other."
            )

        if self.restarts > 1 and not self.draws:
            raise ValueError(
                f"restarts is {self.restarts}; {type(self).__name__} with these options draws "
                "nothing at random, every try would be the same: use 1 (or `targets`)."
            )
        if getattr(self, "loss", None) == "kl" and (self.targeted or self.targets):
            raise ValueError(
                "loss is 'kl'; it compares with the clean image's prediction and can head for no "
                "target, use another loss."
            )

    def _integers(self, *of: str, least: int) -> None:
        """Raises a ValueError unless these hyperparameters are integers of at least `least`."""
        for name in of:
            checks.integer(name, getattr(self, name), least=least)

    def _numbers(self, *of: str, within: str) -> None:
        """Raises a ValueError unless these hyperparameters lie in an interval, say "(0, 1]"."""
        for name in of:
            checks.number(name, getattr(self, name), within=within)

    def passes(self, classes: int) -> tuple[Passes, Passes, Passes]:
        """What `init`, a `step` and `result` cost in a network with that many classes."""
        del classes
        return self.init_passes, self.step_passes, self.result_passes

    @property
    def may_go_on(self) -> bool:
        """Whether what it found may be moved on beyond the boundary by a rounding error."""
        return self.minimum_norm

    def attempts(self, classes: int) -> int:
        """Tries for an example of a network with that many classes: restarts times targets."""
        return self.restarts * max(1, min(self.targets, classes - 1))

    def goal(self, clean: jax.Array, label: jax.Array, attempt: jax.Array) -> Goal:
        """What is wanted of an example in one of its attempts.

        Args:
          clean: `[C]` logits of the clean image.
          label: integer scalar, the true class; in a targeted attack the one to reach.
          attempt: integer scalar, from 0 to `attempts(C) - 1`.
        """
        if self.targeted:
            return Goal(None, label, clean)
        if not self.targets:
            return Goal(label, None, clean)
        targets = likeliest(clean, label, self.targets)
        return Goal(label, targets[attempt % targets.size], clean)

    def init(
        self,
        classifier: Classifier,
        image: jax.Array,
        goal: Goal,
        key: jax.Array,
        eps: jax.Array,
    ) -> State:
        """The state before the first step.

        Args:
          classifier: maps images `[B, ...]` to logits `[B, C]`.
          image: `[...]` the clean image, float32 in [0, 1].
          goal: what is wanted of this example; its classes are integer scalars.
          key: one `jax.random.key`, of this attempt at this example.
          eps: float32 scalar, the budget in the attack's norm, at least 0 (in L0 its floor counts);
            `inf` for minimum-norm attacks, which do not look at it.
        """
        raise NotImplementedError

    def step(self, classifier: Classifier, state: State) -> State:
        """The state after one more iteration, of the same structure, shapes and dtypes."""
        raise NotImplementedError

    def finished(self, state: State) -> jax.Array:
        """Boolean scalar: whether further steps cannot change the result."""
        raise NotImplementedError

    def iterate(self, state: State) -> jax.Array:
        """The image `[...]` where the attack stands, to be looked at where nothing was found.

        The state's `x`, or the clean image of a state that has none.
        """
        return state.x if hasattr(state, "x") else state.image

    def result(self, classifier: Classifier, state: State) -> Found:
        """What was found; a last iterate that no step has looked at is looked at here."""
        raise NotImplementedError

    def find(
        self,
        classifier: Classifier,
        image: jax.Array,
        goal: Goal,
        key: jax.Array,
        eps: jax.Array | float = jnp.inf,
    ) -> Found:
        """One whole attempt at one image, in one program: to jit, and to vmap over any argument.

        Checks nothing and stops early for nobody; `attacks.run` is what evaluates.

        Args:
          classifier, image, goal, key: as in `init`.
          eps: the budget, a number or a scalar; needed by fixed-budget attacks.

        Returns:
          What was found, for this one image.
        """
        return self.result(classifier, self.walk(classifier, image, goal, key, eps))

    def walk(
        self,
        classifier: Classifier,
        image: jax.Array,
        goal: Goal,
        key: jax.Array,
        eps: jax.Array | float = jnp.inf,
    ) -> State:
        """The state after all steps of one attempt at one image; arguments as in `find`."""
        state = self.init(classifier, image, goal, key, jnp.asarray(eps, jnp.float32))
        return jax.lax.fori_loop(
            0, self.steps, lambda _, state: self.step(classifier, state), state
        )

    def nothing_found(self, image: jax.Array) -> Found:
        """The result to start from: the clean image at infinite distance."""
        return Found(image, jnp.array(False), jnp.array(jnp.inf))

    def nearest(self, best: Found, image: jax.Array, x: jax.Array, adversarial: jax.Array) -> Found:
        """`best`, or `x` where that is adversarial and nearer to `image`."""
        distance = norms.get(self.norm).distance(x - image)
        better = adversarial & (distance < best.distance)
        candidate = Found(x, adversarial, distance)
        return jax.tree.map(lambda new, old: jnp.where(better, new, old), candidate, best)


def logits_of(classifier: Differentiable, image: jax.Array) -> jax.Array:
    """Logits `[C]` of one image."""
    return classifier(image[None])[0]


def as_attacked(
    attack: Attack, classifier: Classifier, images: Images
) -> tuple[Classifier, Images]:
    """Classifier and images `[B, ...]` as the attack gets them: as vectors, where it may."""
    if not attack.entrywise or attack.norm == "l0_pixels":
        return classifier, images
    return classifier.on_vectors(images.shape[1:]), images.reshape(len(images), -1)
