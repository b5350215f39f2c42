"""What every method shares: how long, with which optimiser, against which budget."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import optax

from prunejax import attacks, checks, masks, names, pruning
from prunejax.training import adversaries, objectives, optimizers
from prunejax.training.evidence import expected, with_evidence
from prunejax.training.phase import Mask, Phase, Start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Hyperparameters of training that all methods have; subclasses add their own.

    Attributes:
      epochs: epochs of training.
      optimizer: "adam", "adamw" or "sgd".
      learning_rate: at the start of the phase.
      schedule: of the learning rate, "cosine" or "constant".
      weight_decay: of the optimiser, for those that have it.
      label_smoothing: in [0, 1).
      norm: of the adversarial training's budget.
      eps: the budget, in that norm.
      attack_steps: PGD steps of the adversarial training.
      relative_step: PGD's step as a share of eps.
    """

    epochs: int = 30
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    weight_decay: float | None = None
    label_smoothing: float = 0.0
    norm: str = "linf"
    eps: float = 0.1
    attack_steps: int = 10
    relative_step: float = 0.25

    def __post_init__(self):
        checks.integer("epochs", self.epochs, least=1)
        checks.number("label_smoothing", self.label_smoothing, within="[0, 1)")
        self.adversary()
        self.tx(steps=1)

    def phases(self, steps_per_epoch: int) -> tuple[Phase, ...]:
        """The method as phases of training."""
        raise NotImplementedError

    @property
    def target_sparsity(self) -> float:
        """Share of the units that the method ends without, of those that may be removed."""
        return 0.0

    def adversary(self) -> adversaries.Adversary:
        """PGD on the cross-entropy with the prescribed budget."""
        attack = attacks.PGD(
            norm=self.norm,
            steps=self.attack_steps,
            loss="cross_entropy",
            relative_step=self.relative_step,
        )
        return adversaries.prescribed(attack, self.eps)

    def cross_entropy(self, *, adversarial: bool) -> objectives.Objective:
        """Of the images that `adversary` makes, or of the clean ones."""
        if adversarial:
            return objectives.adversarial(self.adversary(), self.label_smoothing)
        return objectives.natural(self.label_smoothing)

    def tx(
        self, steps: int, learning_rate: float | None = None, begin: int = 0
    ) -> optax.GradientTransformation:
        """The optimiser for a schedule of `steps` steps, by default at the method's own rate.

        `begin` is the step of that schedule with which the phase begins.
        """
        rate = self.learning_rate if learning_rate is None else learning_rate
        options = {} if self.weight_decay is None else {"weight_decay": self.weight_decay}
        return optimizers.create(
            self.optimizer, rate, steps, schedule=self.schedule, begin=begin, **options
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruningMethod(Method):
    """A method that prunes.

    Attributes:
      sparsity: share of the units to remove, in [0, 1).
      criterion: a key of `pruning.CRITERIA`.
      granularity: a key of `pruning.GRANULARITIES`, or such as "2:4" and "block4x4".
      allocation: a key of `pruning.ALLOCATIONS`, or a table of densities by path pattern.
      include: shell patterns of the paths that may be pruned.
      exclude: shell patterns of the paths that may not.
      aggregate: how scores of weights become a unit's, a key of `pruning.AGGREGATES`; None is the
        criterion's own.
      guard: keep at least one unit of each layer.
    """

    sparsity: float = 0.9
    criterion: str = "magnitude"
    granularity: str = "weight"
    allocation: str | Mapping[str, float] = "uniform"
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    aggregate: str | None = None
    guard: bool = True

    def __post_init__(self):
        super().__post_init__()
        checks.number("sparsity", self.sparsity, within="[0, 1)")
        # A table becomes pairs, which are hashable.
        object.__setattr__(self, "allocation", self.pruner().allocation)

    @property
    def target_sparsity(self) -> float:
        """As given."""
        return self.sparsity

    def pruner(self) -> pruning.Pruner:
        """What is removed."""
        return pruning.Pruner(
            criterion=self.criterion,
            granularity=self.granularity,
            allocation=self.allocation,
            include=self.include,
            exclude=self.exclude,
            aggregate=self.aggregate,
            guard=self.guard,
        )

    def pruned(self, start: Start, sparsity: float, rounds: int = 1) -> Mask:
        """The mask at a sparsity; what is gone already stays gone."""
        pruner = self.pruner()
        # At first the mask may be the dense one, in which every leaf is a scalar.
        before = masks.intersect(start.mask, pruner.initial(start.params))
        return pruning.prune(
            start.params,
            sparsity,
            pruner,
            current=before,
            evidence=start.evidence,
            rounds=rounds,
            on_the_way=sparsity < self.target_sparsity,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByCriterion(PruningMethod):
    """A method that scores what there is, instead of learning what to keep.

    Attributes:
      examples: training examples for criteria that look at data. Those of the gradient take that of
        the training's objective.

    Raises:
      ValueError: a criterion that needs more than training brings.
    """

    examples: int = 256

    # Whether it prunes in its optimiser, to which each step brings a gradient.
    in_optimizer: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        known = expected(self.examples)
        try:
            self.pruner().check(known._replace(grads=()) if self.in_optimizer else known)
        except ValueError as error:
            raise ValueError(
                f"criterion is {self.criterion!r}, which needs more than training brings with "
                f"examples={self.examples}: {error}"
            ) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class DuringTraining(ByCriterion):
    """A method whose optimiser prunes: one phase, in which the mask follows a schedule.

    The examples are the same at every change of the mask; network and objective are those of the
    step. Without any, criteria of the gradient take that of the step's batch, with respect to the
    weights before it.

    Attributes:
      pruning_epochs: epochs from the first step until the target sparsity is there to stay.
    """

    pruning_epochs: int = 15

    in_optimizer: ClassVar[bool] = True
    # Whether what is gone stays gone.
    nested: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        self.sparsities(steps_per_epoch=1)

    def objective(self) -> objectives.Objective:
        """What is minimised."""
        raise NotImplementedError

    def sparsities(self, steps_per_epoch: int) -> pruning.schedules.Schedule:
        """When the mask changes, and to which sparsity."""
        raise NotImplementedError

    def phases(self, steps_per_epoch: int) -> tuple[Phase, ...]:
        """One phase; networks count as pruned once the schedule has ended."""
        tx = self.tx(self.epochs * steps_per_epoch)
        schedule = self.sparsities(steps_per_epoch)

        def optimizer(known):
            return pruning.optimizer(
                tx, self.pruner(), schedule, nested=self.nested, evidence=known
            )

        return (
            Phase(
                name="prune",
                epochs=self.epochs,
                objective=self.objective(),
                optimizer=lambda mask: with_evidence(optimizer, self.examples),
                examples=self.examples,
                selectable_from=self.pruning_epochs,
            ),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradualMethod(DuringTraining):
    """A method that prunes little by little.

    Attributes:
      pruning_schedule: "cubic" or "constant_rate".
      initial_sparsity: what "cubic" begins with, in [0, sparsity].
      pruning_begin: epochs before the mask changes first.
      mask_frequency: steps between two changes of the mask.
    """

    pruning_schedule: str = "cubic"
    initial_sparsity: float = 0.0
    pruning_begin: int = 0
    mask_frequency: int = 100

    def __post_init__(self):
        if not 0 <= self.pruning_epochs < self.epochs:
            raise ValueError(
                f"pruning_epochs is {self.pruning_epochs}; "
                f"it must lie in [0, epochs = {self.epochs})."
            )
        if not 0 <= self.pruning_begin <= self.pruning_epochs:
            raise ValueError(
                f"pruning_begin is {self.pruning_begin}; "
                f"it must lie in [0, pruning_epochs = {self.pruning_epochs}]."
            )
        checks.integer("mask_frequency", self.mask_frequency, least=1)
        super().__post_init__()

    def sparsities(self, steps_per_epoch: int) -> pruning.schedules.Schedule:
        """When the mask changes, and to which sparsity."""
        initial = {"cubic": {"initial": self.initial_sparsity}, "constant_rate": {}}
        options = names.lookup("pruning_schedule", self.pruning_schedule, initial)
        if self.initial_sparsity and not options:
            raise ValueError(
                f"initial_sparsity is {self.initial_sparsity}; only pruning_schedule 'cubic' "
                f"begins with one, and it is {self.pruning_schedule!r}."
            )
        return pruning.schedule(
            self.pruning_schedule,
            sparsity=self.sparsity,
            **options,
            begin=self.pruning_begin * steps_per_epoch,
            end=self.pruning_epochs * steps_per_epoch,
            frequency=self.mask_frequency,
        )
