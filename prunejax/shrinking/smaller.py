"""From a mask of filters or channels to a network that is smaller."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import checks, masks, trees
from prunejax.classifier import Classifier, Network
from prunejax.shrinking import gone, grouping, shrunk, structure, widths
from prunejax.shrinking.structure import Structure

# Outputs of the masked and the smaller network may differ by so much of the largest output, or by
# so many units in the last place of the coarsest numbers that the network computes with.
TOLERANCE, ULPS, VANISHING = 1e-4, 4, 1e-12


def shrink(
    classifier: Classifier,
    mask: Any,
    image_shape: tuple[int, ...],
    *,
    multiple: int = 1,
    carry: bool = False,
    check: bool = True,
) -> Classifier:
    """The same network without the channels that the mask removes: smaller arrays, less work.

    A channel is removed where the mask removes every filter that makes it (where branches are
    added, those of all branches; before or at a depthwise filter, through which it passes), or
    every weight that reads it. It goes with its bias, its normalisation and the inputs of the
    layers behind. The smaller network computes what the masked one does: what goes must be zero, as
    it is where the mask is one of `channel_mask`, which covers all that belongs to a channel. (Not
    those that activations read from each other, as queries and keys: they must be zero without
    their layers, as they are not behind elu(x) + 1.) Weights that the mask removes singly stay as
    zeros. Rules of differentiation of the network's own (`jax.custom_vjp`, `jax.custom_jvp`) stay
    in force: channels that such a call mixes, or has numbers of its own for, are not removed.

    Args:
      classifier: the network, its variables with the entry "params".
      mask: of the parameters; whole filters or channels of it are removed.
      image_shape: of one image.
      multiple: the widths of the layers are rounded up to a multiple of this, or left whole, by
        keeping some of those that are zero; see `widths.rounded_up`.
      carry: for masks of filters alone: what belongs to a removed channel may be other than zero,
        its bias or the shift of its normalisation, and is removed too. The smaller network then
        computes what the network under the mask `carried(classifier, mask, image_shape)` does.
      check: compare the outputs of both networks on random images.

    Returns:
      A classifier: of the same module class where that takes any widths (`resized`), else one that
      runs the network's own equations on the smaller arrays.

    Raises:
      ValueError: a mask of another structure, a filter that cannot be removed or that is its
        layer's last, a multiple below 1, images that the network does not take, or, where `check`
        finds it, a smaller network that computes something else.
    """
    checks.integer("multiple", multiple, least=1)
    traced = structure.structure_of(classifier.apply_fn, classifier.variables, image_shape)
    kept, whole = _carried(traced, classifier, mask)
    left_over = None
    if carry:
        mask = whole
    elif masks.kept(classifier.params, whole) != masks.kept(classifier.params, mask):
        left_over = _left_over(traced, kept, classifier.params, mask)
    masked = classifier.with_params(masks.apply(classifier.params, mask))
    groups = [group.channels for group in grouping.groups(traced)]
    kept = widths.rounded_up(traced, groups, kept, multiple)
    variables = structure.without(traced, kept, masked.variables)
    small = Classifier(variables, _smaller(classifier, variables, traced, kept))
    if check:
        _compare(masked, small, traced, kept, image_shape, left_over)
    return small


def carried(classifier: Classifier, mask: Any, image_shape: tuple[int, ...]) -> Any:
    """The mask, and with each channel that it removes all that `shrink` takes away with it.

    Args and errors as in `shrink`.
    """
    traced = structure.structure_of(classifier.apply_fn, classifier.variables, image_shape)
    return _carried(traced, classifier, mask)[1]


def _carried(traced: Structure, classifier: Classifier, mask: Any) -> tuple[np.ndarray, Any]:
    """`[channels]` booleans: those that are kept; and what is left of the mask without others."""
    kept = gone.kept_channels(traced, classifier.params, mask)
    whole = structure.carry(traced, kept, classifier.variables)["params"]
    return kept, masks.intersect(mask, whole)


def _left_over(traced: Structure, kept: np.ndarray, params: Any, mask: Any) -> str:
    """What may be other than zero of the channels that are removed, as words.

    The first path of which the mask leaves more than zeros that belong to them, if there is one.
    Biases and normalisations: the layers that make or read them are told by `kept` itself.
    """
    leaves = trees.flatten(mask)
    layers = traced.channels.made | traced.channels.read
    for path, value in trees.flatten(params).items():
        for axis, own in enumerate(traced.channels.labels[traced.variables[f"params/{path}"]]):
            removed = ~layers[own] & ~kept[traced.channels.channel[own]]
            if removed.any():
                left = np.asarray(leaves[path]) & (np.asarray(value) != 0)
                if (gone.left_along(left, left.ndim)[axis] & removed).any():
                    return f"what is not zero of {path!r}, which belongs to them"
    return "what becomes of their zeros, such as sigmoid(0)"


def _smaller(classifier: Classifier, variables: Any, traced: Structure, kept: np.ndarray):
    """The module with fewer channels where it can be had, else the equations."""
    network = classifier.apply_fn
    if isinstance(network, Network) and hasattr(network.module, "resized"):
        shapes = {path: leaf.shape for path, leaf in trees.flatten(variables["params"]).items()}
        resized = dataclasses.replace(network, module=network.module.resized(shapes))
        if _fits(resized, variables, traced.images.aval):
            return resized
    whole = shrunk.whole(network, classifier.variables)
    return shrunk.without_channels(whole, traced, kept)


def _fits(network: Network, variables: Any, images: Any) -> bool:
    wanted = jax.eval_shape(lambda key: network.init(key, images.shape[1:]), jax.random.key(0))
    shapes = [
        {path: leaf.shape for path, leaf in trees.flatten(tree).items()}
        for tree in (wanted, variables)
    ]
    return shapes[0] == shapes[1]


def _compare(
    masked: Classifier,
    small: Classifier,
    traced: Structure,
    kept: np.ndarray,
    image_shape: tuple[int, ...],
    left_over: str | None,
) -> None:
    images = jax.random.uniform(jax.random.key(0), (2, *image_shape))
    run = jax.jit(lambda classifier, images: classifier(images))
    with jax.default_matmul_precision("highest"):
        expected, found = (run(one, images).astype(jnp.float32) for one in (masked, small))
    error = float(jnp.max(jnp.abs(expected - found)))
    allowed = max(TOLERANCE, ULPS * _coarsest(traced))
    if error <= allowed * float(jnp.max(jnp.abs(expected))) + VANISHING:
        return
    if left_over is not None:
        raise ValueError(
            f"mask removes channels and keeps {left_over}: the network without them differs by "
            f"{error:.2g} from the masked one. Pass carry=True to remove all that belongs to a "
            "channel with it, or let the mask cover it, as `carried` does."
        )
    differs = f"classifier without the masked channels differs by {error:.2g} from the masked one: "
    channels = traced.channels
    compared = np.unique(channels.channel[channels.contracted])
    removed = compared[~kept[compared]]
    made = grouping.made(traced).items()
    if paths := [p.removeprefix("params/") for (p, _), own in made if np.isin(own, removed).any()]:
        raise ValueError(
            f"{differs}activations read channels from each other that {', '.join(map(repr, paths))}"
            " make, and where those are masked they need not be zero, as in elu(x) + 1. Exclude "
            "these layers from pruning."
        )
    raise ValueError(
        f"{differs}it does something to its channels that was not understood. Exclude the layers "
        "in doubt from pruning."
    )


def _coarsest(traced: Structure) -> float:
    """The largest distance from 1 to the next number among the dtypes of a network."""
    outputs = [out for eqn in traced.program.eqns for out in eqn.outvars]
    dtypes = {variable.aval.dtype for variable in (*traced.program.inputs, *outputs)}
    return max(float(jnp.finfo(d).eps) for d in dtypes if jnp.issubdtype(d, jnp.floating))
