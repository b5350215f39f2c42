"""One pixel: a black-box L0 attack by differential evolution over positions and colours."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from prunejax import names
from prunejax.attacks import losses
from prunejax.attacks.attack import Attack, Found, Passes
from prunejax.attacks.goal import Goal


class OnePixelState(NamedTuple):
    """State of the evolution. `[...]` is the image's shape; other numbers are scalars.

    Attributes:
      image, goal, eps, key: clean image `[...]`, what is wanted, the budget in pixels, and the key.
      step: generations bred.
      population: `[population, pixels, 2 + C]` row, column and colour of each pixel, in [0, 1].
      loss: `[population]` of each candidate.
      best: `[pixels, 2 + C]` the first candidate that was adversarial; any until then.
      adversarial: whether there is one; nothing changes from then on.
    """

    image: jax.Array
    goal: Goal
    eps: jax.Array
    key: jax.Array
    step: jax.Array
    population: jax.Array
    loss: jax.Array
    best: jax.Array
    adversarial: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnePixel(Attack):
    """Differential evolution over which few pixels to change, and to which colours.

        child_i = x_r1 + F (x_r2 - x_r3),   r1, r2, r3, i all different and random
        child_i = x_b + F (x_r2 - x_r3),    b the best of the population

    The first is the paper's ("rand1"). The second ("best1") finds more with several pixels and less
    with one; half of the children by each ("both") is better than the first with one and with
    several: of 162 images of Fashion-MNIST (the network of the benchmarks, 30 generations of 90)
    56 are left with 5 pixels and 84 with one, by "rand1" 69 and 89, by "best1" 45 and 99.

    A child replaces its parent x_i where its loss is larger; there is no crossover. A candidate is
    a row, a column and a colour for each pixel. Rows and columns start uniform, colours normal at
    0.5 with deviation 0.5. A colour that leaves [0, 1] is clipped, for corners of the colour cube
    are strong; a position that leaves the image is drawn anew. Where the network knows only a
    probability the paper stops, here as soon as a candidate is adversarial.

    Su et al. (2019), "One pixel attack for fooling deep neural networks", section III. The paper
    raises probabilities, which the cross-entropy orders alike. Counts pixels, all channels
    together; in arrays of lower rank every entry is a pixel. Sparse-RS is far stronger when more
    than a few pixels may change.

    Attributes:
      steps: generations; 100 as in the paper.
      pixels: the most pixels a candidate has, at least 1. At most floor(eps) of them are used,
        so that a budget beyond `pixels` is not exhausted. 1, 3 and 5 in the paper.
      population: candidates, at least 4, each a query (forward pass) a generation; 400 as in the
        paper.
      differential_weight: F, in (0, 2]; 0.5 as in the paper.
      strategy: "both", "best1", or "rand1" as in the paper.
      loss: what is raised, a key of `losses.LOSSES`.
      slice_size: candidates of one example that go through the network together, at least 1. A
        matter of memory and speed only: the network sees slices times the runner's batch size.

    Raises:
      ValueError: a hyperparameter out of its range, an unknown strategy or loss, or another norm
        than "l0_pixels".
    """

    norm: str = "l0_pixels"
    steps: int = 100
    pixels: int = 1
    population: int = 400
    differential_weight: float = 0.5
    strategy: str = "both"
    loss: str = "margin"
    slice_size: int = 8

    supported: ClassVar[tuple[str, ...]] = ("l0_pixels",)
    reference: ClassVar[str] = "Su et al. 2019"
    uses_gradients: ClassVar[bool] = False
    result_passes: ClassVar[Passes] = Passes(0, 0)

    def __post_init__(self):
        super().__post_init__()
        self._integers("pixels", "slice_size", least=1)
        self._integers("population", least=4)
        self._numbers("differential_weight", within="(0, 2]")
        names.lookup("strategy", self.strategy, dict.fromkeys(("both", "best1", "rand1")))

    @property
    def init_passes(self) -> Passes:
        return Passes(self.population, 0)

    @property
    def step_passes(self) -> Passes:
        return Passes(self.population, 0)

    def init(self, classifier, image, goal, key, eps) -> OnePixelState:
        key_place, key_colour = jax.random.split(jax.random.fold_in(key, 0))
        channels = _grid(image).shape[-1]
        place = jax.random.uniform(key_place, (self.population, self.pixels, 2))
        colour = jax.random.normal(key_colour, (self.population, self.pixels, channels))
        population = jnp.concatenate([place, jnp.clip(0.5 + 0.5 * colour, 0, 1)], axis=-1)
        state = OnePixelState(
            image, goal, eps, key, jnp.array(0), population,
            jnp.full(self.population, -jnp.inf), population[0], jnp.array(False),
        )  # fmt: skip
        return self._select(state, population, *self._query(classifier, state, population))

    def step(self, classifier, state: OnePixelState) -> OnePixelState:
        key = jax.random.fold_in(state.key, state.step + 1)
        children = self.breed(key, state.population, state.loss)
        selected = self._select(state, children, *self._query(classifier, state, children))
        return selected._replace(step=state.step + 1)

    def breed(self, key: jax.Array, population: jax.Array, loss: jax.Array) -> jax.Array:
        """One child for each of the population `[population, pixels, 2 + C]`, given its losses."""
        key_parents, key_place = jax.random.split(key)
        x1, x2, x3 = population[three_others(key_parents, len(population))]
        best = population[jnp.argmax(loss)]
        is_odd = jnp.arange(len(population))[:, None, None] % 2 == 1
        near = {"rand1": x1, "best1": best, "both": jnp.where(is_odd, best, x1)}[self.strategy]
        child = near + self.differential_weight * (x2 - x3)
        outside = (child < 0) | (child >= 1)
        anew = jax.random.uniform(key_place, child.shape)
        is_place = jnp.arange(child.shape[-1]) < 2
        return jnp.where(is_place, jnp.where(outside, anew, child), jnp.clip(child, 0, 1))

    def _query(self, classifier, state, candidates) -> tuple[jax.Array, jax.Array]:
        """`[candidates]` loss, and whether it is what is wanted, of each candidate."""

        def query(candidate):
            logits = classifier(paint(state.image, candidate, state.eps)[None])[0]
            return losses.LOSSES[self.loss](logits, state.goal), state.goal.reached(logits)

        return jax.lax.map(query, candidates, batch_size=min(self.slice_size, self.population))

    def _select(self, state: OnePixelState, children, loss, reached) -> OnePixelState:
        """The better of each parent and child, and the first child that succeeds."""
        accepted = ~state.adversarial & (reached | (loss > state.loss))
        first = ~state.adversarial & jnp.any(reached)
        return state._replace(
            population=jnp.where(accepted[:, None, None], children, state.population),
            loss=jnp.where(accepted, loss, state.loss),
            best=jnp.where(first, children[jnp.argmax(reached)], state.best),
            adversarial=state.adversarial | first,
        )

    def finished(self, state: OnePixelState) -> jax.Array:
        return state.adversarial

    def iterate(self, state: OnePixelState) -> jax.Array:
        likeliest = state.population[jnp.argmax(state.loss)]
        return paint(state.image, likeliest, state.eps)

    def result(self, classifier, state: OnePixelState) -> Found:
        del classifier  # all candidates have been looked at
        x = paint(state.image, state.best, state.eps)
        return self.nearest(self.nothing_found(state.image), state.image, x, state.adversarial)


def paint(image: jax.Array, candidate: jax.Array, eps: jax.Array) -> jax.Array:
    """The image with the first floor(eps) pixels of a candidate `[pixels, 2 + C]`, the last on top.

    Positions are compared with the grid's: a scatter takes much longer on a CPU.
    """
    grid = _grid(image)
    rows, columns = (jnp.arange(size) for size in grid.shape[:2])

    def add(x, numbered):
        number, pixel = numbered
        row, column = jnp.floor(pixel[0] * rows.size), jnp.floor(pixel[1] * columns.size)
        here = (rows == row)[:, None] & (columns == column) & (number < jnp.floor(eps))
        return jnp.where(here[..., None], pixel[2:], x), None

    x = jax.lax.scan(add, grid, (jnp.arange(len(candidate)), candidate))[0]
    return x.reshape(image.shape)


def three_others(key: jax.Array, number: int) -> jax.Array:
    """`[3, number]` indices; in column i three random ones that differ, also from i."""
    most = number - jnp.arange(1, 4)[:, None]
    first, second, third = jax.random.randint(key, (3, number), 0, most)
    # Drawn among those that are left, then moved past those that are taken, smallest first.
    second = second + (second >= first)
    third = third + (third >= jnp.minimum(first, second))
    third = third + (third >= jnp.maximum(first, second))
    offsets = 1 + jnp.stack([first, second, third])
    return (jnp.arange(number) + offsets) % number


def _grid(image: jax.Array) -> jax.Array:
    """`[rows, columns, channels]`: a pixel is the last axis of arrays of rank 3 or more."""
    if image.ndim < 3:
        return image.reshape(len(image), -1, 1)
    return image.reshape(len(image), -1, image.shape[-1])
