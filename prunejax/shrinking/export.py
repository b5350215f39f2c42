"""A network as files that need nothing of this library."""

import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import checks, trees
from prunejax.classifier import Classifier


class Exported(NamedTuple):
    """The files of an exported network.

    Attributes:
      program: StableHLO with the weights in it, as `jax.export` serializes it.
      weights: safetensors of the variables by path, such as "params/Conv_0/kernel"; without keys
        of random numbers, which networks of Flax NNX may hold beside them.
    """

    program: pathlib.Path
    weights: pathlib.Path


def export(
    classifier: Classifier,
    image_shape: Sequence[int],
    path_prefix: str | os.PathLike,
    batch: str | int = "b",
    *,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> Exported:
    """Writes the network as `<path_prefix>.stablehlo` and `<path_prefix>.safetensors`.

    The program maps images in [0, 1], float32, to logits, and runs where JAX (with the package
    flatbuffers) is:

        from jax import export

        data = pathlib.Path("network.stablehlo").read_bytes()
        program = export.deserialize(bytearray(data))
        logits = program.call(images)

    Args:
      classifier: the network.
      image_shape: of one image, `(H, W, C)`.
      path_prefix: of the files; its folder is made where it does not exist.
      batch: a name for any number of images, or a number of images for a network that does not
        run on an unknown one: one whose module says `len(x)` where `x.shape[0]` would do, say, or
        asks whether there are more than four. What was made smaller is no different.
      platforms: where the program is to run.

    Raises:
      ValueError: a batch below 1, a network that does not take such images, or none of an unknown
        number.
    """
    from safetensors.numpy import save_file

    if not isinstance(batch, str):  # else a name, as of a dimension of any size
        checks.integer("batch", batch, least=1)
    _check_shape(classifier, tuple(image_shape))
    program = _traced(classifier, tuple(image_shape), batch, platforms)
    files = Exported(*(_beside(path_prefix, end) for end in ("stablehlo", "safetensors")))
    weights, serialized = _weights(classifier), program.serialize()
    files.program.parent.mkdir(parents=True, exist_ok=True)
    files.program.write_bytes(serialized)
    save_file(weights, files.weights)
    return files


def _check_shape(classifier: Classifier, image_shape: tuple[int, ...]) -> None:
    try:
        jax.eval_shape(classifier, jax.ShapeDtypeStruct((2, *image_shape), jnp.float32))
    except Exception as error:
        raise ValueError(
            f"image_shape is {image_shape}, and the network does not take such images: {error}"
        ) from error


def _traced(classifier, image_shape, batch, platforms):
    from jax import export as jax_export

    number = jax_export.symbolic_shape(batch)[0] if isinstance(batch, str) else batch
    images = jax.ShapeDtypeStruct((number, *image_shape), jnp.float32)
    function = jax.jit(lambda images: classifier(images))
    make = jax_export.export(function, platforms=tuple(platforms))
    if not isinstance(batch, str):
        return make(images)
    try:
        return make(images)
    except Exception as error:
        raise ValueError(
            f"The network does not run on an unknown number of images, batch={batch!r} "
            f"({_first_line(error)}); give one, such as batch=1."
        ) from error


def _weights(classifier: Classifier) -> dict[str, np.ndarray]:
    variables = trees.flatten(classifier.variables)
    # Contiguous: the format stores an array's memory, whatever its strides.
    return {
        path: np.asarray(value).copy(order="C")
        for path, value in variables.items()
        if not jnp.issubdtype(jnp.result_type(value), jax.dtypes.prng_key)
    }


def _beside(prefix: str | os.PathLike, end: str) -> pathlib.Path:
    prefix = pathlib.Path(prefix)
    return prefix.with_name(f"{prefix.name}.{end}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
