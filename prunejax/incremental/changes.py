"""The functions of `windowed`: a full pass, a query, and taking its images over."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from prunejax import checks, jaxprs
from prunejax.incremental import rules, spans
from prunejax.incremental.look import Local, Look
from prunejax.incremental.memory import Entry, Memory, Place, Recorder, Spans

Kept = tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True)
class Changes:
    """A network at images `[B, H, W, C]` that change in one window at a time.

    Attributes:
      program: the network at such images.
      window: of the images, along rows and columns.
      entries: what is kept.
    """

    program: jaxprs.Flat
    window: Spans
    entries: tuple[Entry, ...] = ()

    def start(self, images: jax.Array) -> Kept:
        """A full pass: the activations at these images that queries will read."""
        values = {**self.program.constants, self.program.inputs[0]: images}
        wanted = [entry.variable for entry in self.entries]
        found = jaxprs.evaluate_all(self.program.eqns, values, wanted)
        return tuple(entry.padded(x) for entry, x in zip(self.entries, found, strict=True))

    def look(self, kept: Kept, corner: jax.Array, patch: jax.Array) -> tuple[Any, Kept]:
        """The network at the kept images with other pixels in a window.

        Args:
          kept: of the images before.
          corner: `[2]` integers, the window's first row and column, the same for the whole batch;
            a window that would not fit into the images gives wrong logits.
          patch: `[B, h, w, C]`, the pixels.

        Returns:
          What the network returns, for most `[B, K]` logits, and what `keep` needs to take the
          pixels over.
        """
        place = Place(corner)
        looked = self._looked(Memory(self.entries, kept, place), place, patch)
        fresh = tuple(looked.fresh(entry.variable) for entry in self.entries)
        return self._results(looked), fresh

    def keep(self, kept: Kept, corner: jax.Array, fresh: Kept, which: jax.Array) -> Kept:
        """What is kept once some of the images have the pixels of a query.

        Args:
          kept: of the images before.
          corner: of that query.
          fresh: what it returned.
          which: `[B]` booleans, the images that take their pixels; the others stay as they are.
        """
        place = Place(corner)
        return tuple(
            _taken_over(entry, place, old, new, which)
            for entry, old, new in zip(self.entries, kept, fresh, strict=True)
        )

    def recorded(self) -> "Changes":
        """The same with all entries that its queries read."""
        recorder, windows = Recorder(), {}

        def look(corner, patch):
            looked = self._looked(recorder, Place(corner), patch)
            results = self._results(looked)
            while left := [v for v in recorder.fills if v not in windows]:  # one reads another
                for variable in left:
                    looked.fresh(variable)
                    state = looked.values[variable]
                    windows[variable] = state.window if isinstance(state, Local) else None
            return results

        batch, *_, channels = self.program.inputs[0].aval.shape
        shape = (batch, *(span.size for span in self.window), channels)
        patch = jax.ShapeDtypeStruct(shape, self.program.inputs[0].aval.dtype)
        jax.eval_shape(look, jax.ShapeDtypeStruct((2,), jnp.int32), patch)
        none = {0.0: ((0, 0), (0, 0))}
        entries = tuple(
            Entry(variable, fill, margins, windows[variable])
            for variable, fills in recorder.fills.items()
            for fill, margins in (fills or none).items()
        )
        return dataclasses.replace(self, entries=entries)

    def _looked(self, memory: Memory | Recorder, place: Place, patch: jax.Array) -> Look:
        images = {self.program.inputs[0]: Local(self.window, patch)}
        look = Look(memory, place, {**self.program.constants, **images})
        for eqn in self.program.eqns:
            look.step(eqn, rules.rule(eqn))
        return look

    def _results(self, look: Look) -> Any:
        found = [look.whole(atom) for atom in self.program.outputs]
        return jax.tree.unflatten(self.program.structure, found)


def windowed(function: Callable[[jax.Array], Any], images: Any, size: Sequence[int]) -> Changes:
    """Prepares a network for images that change in a window at a time, of a fixed size.

    Its queries compute anew what the window reaches: of convolutions, poolings, elementwise
    operations, slices, channels put together, a dense layer on all pixels and a mean over them.
    What comes after another operation, or where the window has grown over three quarters of a map,
    is computed entirely. Activations other than `[B, H, W, C]` are, too.

    Args:
      function: images `[B, H, W, C]` -> logits `[B, K]`, such as a classifier; each image's logits
        depend on that image alone.
      images: arrays, or their shapes and dtypes.
      size: height and width of the window, in pixels.

    Raises:
      ValueError: images of other than four axes, or a window that does not fit into them or is no
        pair of integers.
    """
    if len(images.shape) != 4:
        raise ValueError(f"images has shape {tuple(images.shape)}; needed are [B, H, W, C].")
    height, width = images.shape[1:3]
    if len(size) != 2:
        raise ValueError(f"size is {tuple(size)}; needed are a height and a width.")
    for i, (side, most) in enumerate(zip(size, (height, width), strict=True)):
        checks.integer(f"size[{i}]", side, least=1)
        if side > most:
            raise ValueError(f"size is {tuple(size)}; the images have {height} x {width} pixels.")
    window = (spans.moving(height, size[0]), spans.moving(width, size[1]))
    return Changes(jaxprs.flat(function, images), window).recorded()


def _taken_over(entry: Entry, place: Place, old, new, which) -> jax.Array:
    which = which.reshape(-1, *(1,) * (old.ndim - 1))
    if entry.window is None:
        return jnp.where(which, new, old)
    pairs = zip(entry.window, entry.margins, strict=True)
    window = tuple(spans.shifted(span, before) for span, (before, _) in pairs)
    return place.written(old, jnp.where(which, new, place.cut(old, window)), window)
