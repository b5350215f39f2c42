"""A network's variables and the channels that they share."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from prunejax import jaxprs, trees
from prunejax.shrinking import coupling
from prunejax.shrinking.labels import Channels

Variables = Any
Shapes = Any


class Structure(NamedTuple):
    """A network as it was traced, and its channels.

    Attributes:
      program: its equations.
      variables: the program's inputs by their path, such as "params/Conv_0/kernel".
      images: the program's last input.
      channels: what belongs together.
      before: of the network with the blocks that this one has lost, by which the others are named;
        None where it has lost none.
    """

    program: jaxprs.Flat
    variables: Mapping[str, core.Var]
    images: core.Var
    channels: Channels
    before: "Structure | None"

    @property
    def number(self) -> int:
        """How many channels there are, those included that cannot be removed."""
        return int(self.channels.channel.max(initial=-1)) + 1

    def along(self, path: str) -> tuple[np.ndarray, ...]:
        """For each axis of a variable `[n]` its channels."""
        return tuple(
            self.channels.channel[labels] for labels in self.channels.labels[self.variables[path]]
        )

    def removable(self) -> np.ndarray:
        """`[channels]` booleans: those that a layer makes and nothing keeps."""
        made = np.zeros(self.number, bool)
        made[self.channels.channel[self.channels.made]] = True
        made[list(self.channels.fixed)] = False
        return made


def trace(
    function: Callable[..., Any], variables: Variables, images: jax.ShapeDtypeStruct
) -> Structure:
    """The structure of `function(variables, images)`, whose first result are the logits.

    Args:
      function: a network, `Network.__call__` or `Network.train`.
      variables: its variables, or their shapes.
      images: shape and dtype of a batch.
    """
    shapes = shapes_of(variables)
    program = jaxprs.flat(function, shapes, images, keep_rules=True)
    *inputs, last = program.inputs
    by_path = dict(zip(trees.flatten(shapes), inputs, strict=True))
    channels = coupling.channels(program, inputs)
    structure_before = getattr(function, "structure_before", None)
    before = None if structure_before is None else structure_before(images)
    return Structure(program, by_path, last, channels, before)


def structure_of(
    apply_fn: Callable[..., Any], variables: Variables, image_shape: tuple[int, ...]
) -> Structure:
    """The structure of a network on images `[H, W, C]` or vectors `[d]`.

    Example:
      structure = shrinking.structure_of(classifier.apply_fn, classifier.variables, (32, 32, 3))

    Raises:
      ValueError: variables without "params", images that the network does not take, or a network
        that cannot be traced.
    """
    require_params(variables)
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    try:
        return trace(apply_fn, variables, images)
    except Exception as error:
        _require_images(apply_fn, variables, images, error)
        raise


def require_params(variables: Variables) -> None:
    """Raises a ValueError for variables among which the parameters cannot be told."""
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise ValueError(
            "variables have no entry 'params'; pass {'params': parameters}, with other collections "
            "beside it, and an apply_fn that takes them so."
        )


def require_traced(structure: Structure, params: Any) -> None:
    """Raises a ValueError for parameters of another network than the one that was traced."""
    traced = {path: v.aval.shape for path, v in structure.variables.items()}
    found = {f"params/{path}": jnp.shape(leaf) for path, leaf in trees.flatten(params).items()}
    for path in (*found, *traced):
        if path.startswith("params/") and found.get(path) != traced.get(path):
            shapes = [shape.get(path, "missing") for shape in (traced, found)]
            raise ValueError(
                f"{path!r} was {shapes[0]} when the network was traced and is {shapes[1]}; trace "
                "the network as it is: shrinking.structure_of(classifier.apply_fn, "
                "classifier.variables, image_shape)."
            )


def _require_images(apply_fn, variables, images, error) -> None:
    """Raises a ValueError where the network itself is what failed, not the search for channels."""
    try:
        jax.eval_shape(apply_fn, shapes_of(variables), images)
    except _UNTRACEABLE:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            "apply_fn cannot be traced: what it does must depend on shapes alone, in jax.numpy "
            f"instead of NumPy and with jax.lax.cond instead of if. JAX says: {reason}"
        ) from error
    except Exception:
        raise ValueError(
            f"image_shape is {images.shape[1:]}, and the network does not take such images: {error}"
        ) from error


# Values were asked for where there are only shapes.
_UNTRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def shapes_of(variables: Variables) -> Shapes:
    """The same tree of shapes and dtypes."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), variables)


def carry(structure: Structure, kept: np.ndarray, variables: Variables) -> Variables:
    """A mask of all variables that removes whole channels wherever they occur.

    Args:
      structure: of the network.
      kept: `[channels]` booleans.
      variables: the network's, for their structure.

    Returns:
      Booleans that broadcast against the variables: a channel is gone from the filter that makes
      it, its bias, its normalisation and the weights that read it.
    """

    def leaf(path, _):
        axes = [kept[channels] for channels in structure.along(path)]
        whole = [axis.reshape([-1 if j == i else 1 for j in range(len(axes))])
                 for i, axis in enumerate(axes) if not axis.all()]  # fmt: skip
        return jnp.asarray(functools.reduce(np.logical_and, whole, np.True_))

    return trees.map_with_path(leaf, variables)


def without(structure: Structure, kept: np.ndarray, variables: Variables) -> Variables:
    """The variables without the channels that are not kept: smaller arrays, the same tree."""

    def leaf(path, value):
        for axis, channels in enumerate(structure.along(path)):
            if not kept[channels].all():
                value = jnp.take(value, np.flatnonzero(kept[channels]), axis=axis)
        return value

    return trees.map_with_path(leaf, variables)
