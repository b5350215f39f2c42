"""What every attack is: hyperparameters, and pure functions init, step and result.

An attack is written for ONE example, an image without a batch axis; `jax.vmap` makes it a batch,
so that a result can depend neither on the batch's size nor on its order. `attacks.run` drives it.
In the docstrings of attacks `[...]` is the shape of that image, `[H, W, C]` or any other.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prunejax import checks, names, norms
from prunejax.attacks import losses
from prunejax.attacks.goal import Goal, likeliest
from prunejax.canonical import canonical
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


class Stage(NamedTuple):
    """Steps of an attack that are one program."""

    attack: "Attack"
    steps: int


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
        `targets` in a targeted attack, restarts of one that draws nothing at random, or a loss that
        is unknown, can head for no target, or has no gradient where the attack begins.
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
    # What it maximises, a key of `losses.LOSSES`, where that is a choice.
    loss: ClassVar[str | None] = None
    # Whether it begins at the clean image and stays there without a gradient.
    needs_gradient_at_image: ClassVar[bool] = False
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
        if self.loss is not None:
            self._require_loss()

    def _require_loss(self) -> None:
        """Raises a ValueError unless the loss is known and leads somewhere from the clean image."""
        names.lookup("loss", self.loss, losses.LOSSES)
        if self.loss not in losses.FROM_CLEAN:
            return
        if self.targeted or self.targets:
            raise ValueError(
                f"loss is {self.loss!r}; it compares with the clean image's prediction and can "
                "head for no target, use another loss."
            )
        if self.needs_gradient_at_image:
            raise ValueError(
                f"loss is {self.loss!r}; its gradient is 0 at the clean image, where "
                f"{type(self).__name__} begins: use another loss, or PGD with random_start=True."
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

    def sharing(self, state: State, key: jax.Array) -> State:
        """The first state, which draws by `key` what it draws in common with all other examples.

        Each attempt of a run has one such key; most attacks draw nothing in common.
        """
        del key
        return state

    def stages(self, image_shape: tuple[int, ...]) -> tuple[Stage, ...]:
        """The programs that take the steps, one after the other, on images of this shape.

        Where there are several, all examples of a batch are at the same step.
        """
        del image_shape
        return (Stage(self, self.steps),)

    def advance(
        self, classifier: Classifier, states: State, steps: jax.Array
    ) -> tuple[State, jax.Array]:
        """So many steps of a whole batch.

        Args:
          classifier: maps images `[B, ...]` to logits `[B, C]`.
          states: with a leading axis `[B]`.
          steps: integer scalar.

        Returns:
          The states after the steps, and `[B]` how many of them were made before an example was
          finished.
        """
        step = canonical(jax.vmap(self.step, in_axes=(None, 0)))
        finished = jax.vmap(self.finished)

        def body(_, carry):
            states, taken = carry
            return step(classifier, states), taken + ~finished(states)

        taken = jnp.zeros(finished(states).shape, jnp.int32)
        return jax.lax.fori_loop(0, steps, body, (states, taken))

    def iterate(self, state: State) -> jax.Array:
        """The image `[...]` where the attack stands, to be looked at where nothing was found.

        The state's `x`, or the clean image of a state that has none.
        """
        return state.x if hasattr(state, "x") else state.image

    def result(self, classifier: Classifier, state: State) -> Found:
        """What was found; a last iterate that no step has looked at is looked at here."""
        return self.looked_at(state, logits_of(classifier, self.iterate(state)))

    def looked_at(self, state: State, logits: jax.Array) -> Found:
        """`state.found`, or the iterate, whose logits `[C]` these are, where that is adversarial.

        A minimum-norm attack keeps the nearest of them, the others the first.
        """
        adversarial = state.goal.reached(logits)
        if not self.minimum_norm:
            adversarial &= ~state.found.success
        return self.nearest(state.found, state.image, self.iterate(state), adversarial)

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
        """`best`, or `x` where that is adversarial and nearer to the clean image.

        Args:
          best: what was found before.
          image, x: `[...]` the clean image, and one that competes with `best`.
          adversarial: boolean scalar, whether `x` is.
        """
        distance = norms.get(self.norm).distance(x - image)
        better = adversarial & (distance < best.distance)
        return optax.tree.where(better, Found(x, adversarial, distance), best)


def logits_of(classifier: Differentiable, image: jax.Array) -> jax.Array:
    """Logits `[C]` of one image."""
    return classifier(image[None])[0]


def objective(classifier: Differentiable, loss: str, goal: Goal) -> Callable:
    """The function of an image `[...]` that gives a loss there, and the logits `[C]` beside it."""

    def at(image):
        logits = logits_of(classifier, image)
        return losses.LOSSES[loss](logits, goal), logits

    return at


def as_attacked(
    attack: Attack, classifier: Classifier, images: Images
) -> tuple[Classifier, Images]:
    """Classifier and images `[B, ...]` as the attack gets them: as vectors, where it may."""
    if not attack.entrywise or norms.get(attack.norm).unit == "pixels":
        return classifier, images
    return classifier.on_vectors(images.shape[1:]), images.reshape(len(images), -1)
