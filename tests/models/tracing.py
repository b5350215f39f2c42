"""What networks look like, by tracing them: nothing is computed."""

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from prunejax import models, trees
from prunejax.models import mobilenet, resnet


class Trace(NamedTuple):
    """What a network looks like.

    Shapes of the parameters by path, of three images' logits, the last map's resolution, and for
    each residual block whether it adds its input and whether its output has the input's shape.
    """

    shapes: dict[str, tuple[int, ...]]
    logits: tuple[int, ...]
    resolution: tuple[int, ...] | None
    residual: list[tuple[bool, bool]]


@functools.cache
def traced(module, image_shape):
    """What a network looks like on such images; nothing is computed."""
    maps, residual = [None], []

    def note(next_function, args, kwargs, context):
        out = next_function(*args, **kwargs)
        if isinstance(context.module, nn.Conv):
            maps.append(out.shape[1:3])
        if isinstance(context.module, resnet.Block):
            residual.append((not context.module.project, args[0].shape == out.shape))
        if isinstance(context.module, mobilenet.InvertedResidual):
            residual.append((context.module.residual, args[0].shape == out.shape))
        return out

    images = jax.ShapeDtypeStruct((3, *image_shape), jnp.float32)
    with nn.intercept_methods(note):
        logits, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), images)
    shapes = {path: leaf.shape for path, leaf in trees.flatten(variables["params"]).items()}
    return Trace(shapes, logits.shape, maps[-1], residual)


def create(name, **options):
    """A network of ten classes, of a thousand where it is ImageNet's, and its images' shape."""
    if options.get("stem") == "imagenet":
        return models.create(name, 1000, **options), (224, 224, 3)
    return models.create(name, 10, **options), (32, 32, 3)


def network(name, **options):
    return traced(*create(name, **options)).shapes


def kernels(shapes):
    return {path: shape for path, shape in shapes.items() if path.endswith("/kernel")}


def count(shapes):
    return sum(map(math.prod, shapes.values()))
