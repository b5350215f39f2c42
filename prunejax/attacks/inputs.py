"""What an attack is given, checked before anything is compiled."""

import jax
import jax.numpy as jnp
import numpy as np

from prunejax.classifier import Classifier


def validated(attack, classifier, images, labels, eps):
    """`images`, `labels` and `eps` as float32 and int32, an entry an example; the classes.

    Raises:
      ValueError: one that the attack or the classifier cannot take.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim < 2 or not np.issubdtype(images.dtype, np.floating):
        raise ValueError(
            f"images has shape {images.shape} and dtype {images.dtype}; "
            "a batch [N, ...] of floats in [0, 1] is needed (divide bytes by 255)."
        )
    if len(images) == 0 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels has shape {labels.shape} for images of shape {images.shape}; "
            "one label an image is needed, and at least one image."
        )
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"images lies in [{images.min()}, {images.max()}]; it must lie in [0, 1], "
            "normalisation belongs inside the classifier."
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(classifier):
        if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(np.asarray(leaf)).all():
            raise ValueError(
                f"classifier{jax.tree_util.keystr(path)} has NaN or infinite entries; "
                "a network that has diverged cannot be attacked, restore an earlier checkpoint."
            )
    logits = _shape_of_logits(classifier, images.shape[1:])
    if not hasattr(logits, "shape") or len(logits.shape) != 2 or logits.shape[0] != 2:
        raise ValueError(f"classifier returns {logits} for 2 images; logits [2, C] are needed.")
    classes = logits.shape[1]
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"labels are {labels.dtype} in [{labels.min()}, {labels.max()}]; "
            f"integers in [0, {classes - 1}] are needed, for the classifier has {classes} classes."
        )
    if attack.minimum_norm:
        if eps is not None:
            raise ValueError(
                f"eps is {eps}; {type(attack).__name__} looks for the minimum, pass None."
            )
        eps = np.inf
    elif eps is None:
        raise ValueError(f"eps is None; {type(attack).__name__} needs a budget in {attack.norm}.")
    budgets = np.asarray(eps)
    acceptable = np.issubdtype(budgets.dtype, np.number) and budgets.shape in ((), labels.shape)
    if not acceptable or not (budgets >= 0).all():
        raise ValueError(f"eps is {budgets}; a number >= 0 is needed, or one for each example.")
    if not (attack.minimum_norm or np.isfinite(budgets).all()):
        raise ValueError(f"eps is {budgets}; the budget of {type(attack).__name__} must be finite.")
    eps = budgets.astype(np.float32)
    return (
        images.astype(np.float32),
        labels.astype(np.int32),
        np.broadcast_to(eps, labels.shape).copy(),
        classes,
    )


def _shape_of_logits(classifier: Classifier, image_shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    try:
        # Of a jitted function, so that a network is traced once and not for every attack.
        return _logits.eval_shape(classifier, jax.ShapeDtypeStruct((2, *image_shape), jnp.float32))
    except Exception as error:  # whatever the network raises on such images
        raise ValueError(
            f"images has the shape {image_shape} without its first axis, which the classifier does "
            f"not take ({type(error).__name__}: {error}); give it what it was trained on."
        ) from error


@jax.jit
def _logits(classifier: Classifier, images: jax.Array) -> jax.Array:
    return classifier(images)


def validated_indices(indices, number: int) -> np.ndarray:
    """`indices`, or 0 to `number` - 1 for None."""
    indices = np.arange(number) if indices is None else np.asarray(indices)
    if indices.shape != (number,) or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(
            f"indices has shape {indices.shape} and dtype {indices.dtype}; "
            f"integers of shape {(number,)} are needed, one an example."
        )
    return indices
