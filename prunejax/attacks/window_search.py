"""Random search in windows of one size: what a query does not reach is not computed again."""

from typing import Protocol

import jax
import jax.numpy as jnp
from jax import lax

from prunejax.attacks.random_search import Point, RandomSearchState
from prunejax.canonical import canonical
from prunejax.classifier import Classifier
from prunejax.incremental import windowed

# So many queries follow one whole pass. More of them would add up more rounding errors.
REFRESH = 250


class WindowSearch(Protocol):
    """A random search whose proposal changes one window, at a place common to all examples."""

    def corner(self, common: jax.Array, step: jax.Array, size, shape) -> jax.Array:
        """`[2]` row and column of the window in an image `[H, W]` = `shape`."""

    def repaint(self, key, image, best, eps) -> jax.Array:
        """The window's new pixels `[h, w, C]`, given those of the clean and the best image."""

    def judged(self, state, logits) -> tuple[jax.Array, RandomSearchState]:
        """Whether a proposal is accepted, and the state but for the best image."""


def advance(
    attack: WindowSearch,
    classifier: Classifier,
    states: RandomSearchState,
    steps: jax.Array,
    size: tuple[int, int],
) -> tuple[RandomSearchState, jax.Array]:
    """So many steps of a batch of images `[H, W, C]`, all at the same step; see `Attack.advance`.

    Now and then it makes a whole pass, of which it keeps the activations. Logits are those of whole
    passes but for rounding errors, which add up from one to the next.

    Args:
      attack: proposes and judges.
      classifier, states, steps: as in `Attack.advance`.
      size: height and width of all the windows.
    """
    image_shape = states.image.shape[1:3]
    changes = windowed(classifier, states.image, size)
    start, look = canonical(changes.start), canonical(changes.look)
    common, first = states.common[0], states.step[0]

    def query(number, carry):
        states, kept, taken = carry
        corner = attack.corner(common, first + number, size, image_shape)
        clean, before = (_window(images, corner, size) for images in (states.image, states.best.x))
        taken = taken + ~states.adversarial
        keys = jax.vmap(jax.random.fold_in)(states.key, states.step + 1)
        patch = jax.vmap(attack.repaint)(keys, clean, before, states.eps)
        logits, fresh = look(kept, corner, patch)
        accepted, states = jax.vmap(attack.judged)(states, logits)
        kept = changes.keep(kept, corner, fresh, accepted)
        window = jnp.where(accepted[:, None, None, None], patch, before)
        x = lax.dynamic_update_slice(states.best.x, window, (0, *corner, 0))
        return states._replace(best=Point(x)), kept, taken

    def refreshed(number, carry):
        states, taken = carry
        begin = number * REFRESH
        carry = states, start(states.best.x), taken
        end = jnp.minimum(begin + REFRESH, steps)
        states, _, taken = lax.fori_loop(begin, end, query, carry)
        return states, taken

    taken = jnp.zeros(len(states.image), jnp.int32)
    return lax.fori_loop(0, -(-steps // REFRESH), refreshed, (states, taken))


def _window(images: jax.Array, corner: jax.Array, size: tuple[int, int]) -> jax.Array:
    number, _, _, channels = images.shape
    return lax.dynamic_slice(images, (0, *corner, 0), (number, *size, channels))
