"""What a run is given, checked before anything is compiled."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from prunejax import checks, names, norms
from prunejax.attacks.lanes import lane_count
from prunejax.classifier import Classifier

OPTIONS = ("indices", "batch_size", "devices")
# Of other kinds of keys, "rbg" and "unsafe_rbg", a batch draws by its first one alone.
KEYS = "threefry2x32"


class Inputs(NamedTuple):
    """The arguments of a run when they have been checked.

    Attributes:
      images, labels, eps, indices: `[N, ...]` float32, and `[N]` int32, float32 and integers; `eps`
        is infinite where there is no budget.
      classes: of the classifier.
      key: of the run.
      width: lanes, a multiple of the mesh's devices.
      mesh: of the devices that share them.
    """

    images: np.ndarray
    labels: np.ndarray
    eps: np.ndarray
    indices: np.ndarray
    classes: int
    key: jax.Array
    width: int
    mesh: Mesh

    def of(self, which: np.ndarray) -> "Inputs":
        """Those of some examples, in as many lanes: nothing new is compiled for the fewer."""
        return Inputs(*(part[which] for part in self[:4]), *self[4:])


def validated(
    attack,
    classifier: Classifier,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    key: jax.Array,
    eps: float | np.ndarray | None = None,
    indices: np.ndarray | None = None,
    batch_size: int = 256,
    devices: Sequence[jax.Device] | None = None,
) -> Inputs:
    """The arguments of `attacks.run`, those for single examples with an entry for each.

    Raises:
      ValueError: one that the attack or the classifier cannot take.
    """
    require_attack(attack)
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim < 2 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images has shape {images.shape} and dtype {images.dtype}; "
            "a batch [N, ...] of floats in [0, 1] is needed (divide bytes by 255)."
        )
    number = len(images)
    if images.size == 0 or labels.shape != (number,):
        raise ValueError(
            f"labels has shape {labels.shape} for images of shape {images.shape}; "
            "one label an image is needed, and at least one image of at least one entry."
        )
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"images lies in [{images.min()}, {images.max()}]; it must lie in [0, 1], "
            "normalisation belongs inside the classifier."
        )
    classes = _classes(classifier, images.shape[1:])
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels has dtype {labels.dtype}; integers are needed, one a class.")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"labels lies in [{labels.min()}, {labels.max()}]; it must lie in [0, {classes - 1}], "
            f"for the classifier has {classes} classes."
        )
    eps = _budgets(attack, eps, number)
    indices = np.arange(number) if indices is None else np.asarray(indices)
    if indices.shape != (number,) or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(
            f"indices has shape {indices.shape} and dtype {indices.dtype}; "
            f"integers of shape {(number,)} are needed, one an example."
        )
    try:
        jax.eval_shape(jax.random.fold_in, key, 0)
    except Exception as error:  # whatever JAX says of other things than keys
        raise ValueError(
            f"key is {key!r}; a single key is needed, such as jax.random.key(0)."
        ) from error
    checks.integer("batch_size", batch_size, least=1)
    mesh = _mesh(devices)
    return Inputs(
        images=images.astype(np.float32, copy=False),
        labels=labels.astype(np.int32),
        eps=eps,
        indices=indices,
        classes=classes,
        key=_drawing_alone(key),
        width=lane_count(number, int(batch_size), mesh.size),
        mesh=mesh,
    )


def _drawing_alone(key: jax.Array) -> jax.Array:
    """The key, as one of a kind that in a batch draws as by itself."""
    data = jax.random.key_data(key).ravel()
    return jax.random.wrap_key_data(data[:2], impl=KEYS)


def require_attack(attack) -> None:
    """Raises a ValueError for a name or a class in the place of an attack or cascade."""
    if isinstance(attack, type) or not hasattr(attack, "minimum_norm"):
        raise ValueError(
            f"attack is {attack!r}; an attack is needed, attacks.create(name) makes one."
        )


def require_options(options: Mapping[str, Any]) -> None:
    """Raises a ValueError for what is handed on to `validated` and no option of a run."""
    for name in options:
        if name not in OPTIONS:
            raise names.unknown("option of a run", name, OPTIONS)


def _mesh(devices: Sequence[jax.Device] | None) -> Mesh:
    devices = jax.local_devices() if devices is None else devices
    listed = isinstance(devices, Sequence | np.ndarray) and not isinstance(devices, str)
    if not listed or not all(isinstance(device, jax.Device) for device in devices):
        raise ValueError(
            f"devices is {devices!r}; a list such as jax.devices() is needed, or None for all "
            "local ones."
        )
    if not len(devices) or len(set(devices)) < len(devices):
        raise ValueError(
            f"devices is {list(devices)}; at least 1 is needed and each once, or None for all "
            "local ones."
        )
    return Mesh(np.array(devices), ("data",))


def require_counts(name: str, budgets: np.ndarray, norm: str) -> None:
    """Raises a ValueError for budgets in L0 between 0 and 1, taken over from another norm."""
    counted = norms.get(norm).unit
    if counted and ((budgets > 0) & (budgets < 1)).any():
        raise ValueError(
            f"{name} is {budgets}; in {norm!r} it is a number of {counted}, 0 or at least 1 is "
            "needed."
        )


def _budgets(attack, eps, number: int) -> np.ndarray:
    """`[number]` float32."""
    name = type(attack).__name__
    if attack.minimum_norm:
        if eps is not None:
            raise ValueError(f"eps is {eps}; {name} looks for the minimum, pass None.")
        return np.full(number, np.inf, np.float32)
    if eps is None:
        raise ValueError(f"eps is None; {name} needs a budget in {attack.norm}.")
    eps = np.asarray(eps)
    real = any(jnp.issubdtype(eps.dtype, kind) for kind in (jnp.floating, jnp.integer))
    if not real or eps.shape not in ((), (number,)) or not (eps >= 0).all():
        raise ValueError(f"eps is {eps}; a number >= 0 is needed, or one for each example.")
    require_counts("eps", eps, attack.norm)
    if not (eps <= np.finfo(np.float32).max).all():
        raise ValueError(f"eps is {eps}; the budget of {name} must be finite, as a float32.")
    return np.broadcast_to(eps.astype(np.float32), (number,)).copy()


def _classes(classifier: Classifier, image_shape: tuple[int, ...]) -> int:
    """How many logits it returns for an image."""
    if not isinstance(classifier, Classifier):
        raise ValueError(
            f"classifier is {classifier!r}; a Classifier(variables, apply_fn) is needed, of a "
            "function of images alone Classifier(None, lambda _, images: function(images))."
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(classifier):
        if not _is_finite(leaf):
            raise ValueError(
                f"classifier{jax.tree_util.keystr(path)} has NaN or infinite entries; "
                "a network that has diverged cannot be attacked, restore an earlier checkpoint."
            )
    for number in (2, 1):  # attacks look at single images too
        images = jax.ShapeDtypeStruct((number, *image_shape), "float32")
        try:
            # Of a jitted function, so that a network is traced once and not for every attack.
            logits = _logits.eval_shape(classifier, images)
        except Exception as error:  # whatever the network raises on such images
            raise ValueError(
                f"images has the shape {image_shape} without its first axis, which the classifier "
                f"does not take ({type(error).__name__}: {error}); give it what it was trained on."
            ) from error
        shape = getattr(logits, "shape", ())
        if len(shape) != 2 or shape[0] != number or shape[1] < 2:
            raise ValueError(
                f"classifier returns {logits} for images of shape {images.shape}; logits "
                f"[{number}, C] of at least 2 classes are needed (one logit z, which a sigmoid "
                "follows, is the same as the two 0 and z)."
            )
        if not jnp.issubdtype(logits.dtype, jnp.floating):
            raise ValueError(
                f"classifier returns {logits}; real numbers are needed, the logits before any "
                "argmax."
            )
    return shape[1]


def _is_finite(leaf) -> bool:
    """Whether no entry is NaN or infinite; True for what holds no floats, such as a key."""
    if not jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.inexact):
        return True
    return bool(np.isfinite(np.asarray(leaf)).all())


@jax.jit
def _logits(classifier: Classifier, images: jax.Array) -> jax.Array:
    return classifier(images)
