"""From a mask of filters or channels to a network that is smaller."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prunejax import checks, masks, trees
from prunejax.classifier import Classifier, Network
from prunejax.shrinking import residual, shrunk, structure
from prunejax.shrinking.labels import Channels
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
    every weight that reads it. It goes with its bias, its
    normalisation and the inputs of the layers behind. The smaller network computes what the masked
    one does: what goes must be zero, as it is where the mask is one of `channel_mask`, which covers
    all that belongs to a channel. (Not those that activations read from each other, as queries and
    keys: they must be zero without their layers, as they are not behind elu(x) + 1.) Weights that
    the mask removes singly stay as zeros. Rules of differentiation of the network's own
    (`jax.custom_vjp`, `jax.custom_jvp`) stay in force: channels that such a call mixes, or has
    numbers of its own for, are not removed.

    Args:
      classifier: the network, its variables with the entry "params".
      mask: of the parameters; whole filters or channels of it are removed.
      image_shape: of one image.
      multiple: the widths of the layers are rounded up to a multiple of this, or left whole, by
        keeping some of those that are zero; see `rounded_up`.
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
    traced = structure.of(classifier.apply_fn, classifier.variables, image_shape)
    kept = kept_channels(traced, classifier.params, mask)
    whole = structure.carry(traced, kept, classifier.variables)["params"]
    whole = masks.intersect(mask, whole)
    left_over = None
    if carry:
        mask = whole
    elif masks.kept(classifier.params, whole) != masks.kept(classifier.params, mask):
        left_over = _left_over(traced, kept, classifier.params, mask)
    masked = classifier.with_params(masks.apply(classifier.params, mask))
    kept = rounded_up(traced, groups(traced), kept, multiple)
    variables = structure.without(traced, kept, masked.variables)
    small = Classifier(variables, _smaller(classifier, variables, traced, kept))
    if check:
        _compare(masked, small, traced, kept, image_shape, left_over)
    return small


def carried(classifier: Classifier, mask: Any, image_shape: tuple[int, ...]) -> Any:
    """The mask, and with each channel that it removes all that `shrink` takes away with it.

    Args and errors as in `shrink`.
    """
    traced = structure.of(classifier.apply_fn, classifier.variables, image_shape)
    kept = kept_channels(traced, classifier.params, mask)
    whole = structure.carry(traced, kept, classifier.variables)["params"]
    return masks.intersect(mask, whole)


def kept_channels(traced: Structure, params: Any, mask: Any) -> np.ndarray:
    """`[channels]` booleans: those that a mask of the parameters leaves.

    Args and errors as in `shrink`.
    """
    kept, leaves = left_by(traced, params, mask), trees.flatten(mask)
    for path, axis, own, left in _said_of_axes(traced, mask):
        if np.size(leaves[path]) == left.size:  # the mask removes whole slices along this axis
            _refuse_fixed(traced, path, axis, own[~np.broadcast_to(left, own.shape)])
    for (path, _), channels in _made(traced).items():
        if not kept[channels].any():
            raise ValueError(
                f"mask removes all {len(channels)} channels that {path.removeprefix('params/')!r} "
                "makes; keep at least one (the collapse guard of pruning does)."
            )
    return kept


def left_by(traced: Structure, params: Any, mask: Any) -> np.ndarray:
    """As `kept_channels`, of any mask: what else it removes, or all of a layer, is no error.

    Raises:
      ValueError: a mask of another structure, or parameters of another network.
    """
    masks.validate(params, mask)
    structure.require_traced(traced, params)
    alive = np.ones(len(traced.channels.channel), bool)
    for _, _, own, left in _said_of_axes(traced, mask):
        alive[own] = left
    return ~_gone(traced, alive)


def _said_of_axes(
    traced: Structure, mask: Any
) -> Iterator[tuple[str, int, np.ndarray, np.ndarray]]:
    """(path, axis, its labels `[n]`, what is left at each, `[n]` or `[1]`) where the mask tells."""
    for path, leaf in trees.flatten(mask).items():
        labels = traced.channels.labels[traced.variables[f"params/{path}"]]
        sides = zip(labels, _left_along(leaf, len(labels)), strict=True)
        for axis, (own, left) in enumerate(sides):
            # One number for all of a layer says the same of each channel that it makes.
            of_layer = np.size(leaf) == 1 and traced.channels.made[own].any()
            if left.size == own.size or of_layer:
                yield path, axis, own, left


def groups(traced: Structure) -> list[np.ndarray]:
    """The removable channels in groups: those that the same layers make.

    Of one layer, of several whose outputs are added, or where one adds fewer channels to those of
    another, those of both and the others.
    """
    makers_of: dict[int, list[tuple[str, int]]] = {
        c: [] for c in np.flatnonzero(traced.removable())
    }
    for maker, channels in _made(traced).items():
        for channel in np.unique(channels).tolist():
            if channel in makers_of:
                makers_of[channel].append(maker)
    together: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for channel, of_it in makers_of.items():
        together.setdefault(tuple(of_it), []).append(channel)
    return [np.array(channels) for channels in together.values()]


def _made(traced: Structure) -> dict[tuple[str, int], np.ndarray]:
    """For each variable and axis along which it makes channels: those channels."""
    made = {}
    for path, variable in traced.variables.items():
        axes = zip(traced.channels.labels[variable], traced.along(path), strict=True)
        for axis, (own, channels) in enumerate(axes):
            if traced.channels.made[own].any():
                made[path, axis] = channels[traced.channels.made[own]]
    return made


def kept_whole(traced: Structure) -> dict[str, str]:
    """Weights of which no channel can be removed: their paths among the parameters, and why.

    The channels of a weight are those that it makes; of one that makes none, all positions of its
    axes. The weights of the last layer are always among them: theirs are the network's outputs.
    """
    removable, fixed, whole = traced.removable(), traced.channels.fixed, {}
    shapes = {path: np.empty(v.aval.shape, bool) for path, v in traced.variables.items()}
    for path in trees.weights(shapes):
        if not path.startswith("params/"):
            continue
        channels = np.concatenate(traced.along(path))
        made = traced.channels.made[np.concatenate(traced.channels.labels[traced.variables[path]])]
        own = channels[made] if made.any() else channels
        reason = next((fixed[c] for c in own.tolist() if c in fixed), None)
        if reason is not None and not removable[own].any():  # else nothing reads it
            whole[path.removeprefix("params/")] = reason
    return whole


def _gone(traced: Structure, alive: np.ndarray) -> np.ndarray:
    """`[channels]`: which are removed, given which positions `[labels]` are left.

    Those of which layers read no stage that holds anything: it is dead, or its readers are gone.
    """
    channels = traced.channels
    stages = int(channels.stage.max(initial=-1)) + 1

    def those_with(labels):
        return np.bincount(channels.stage[labels], minlength=stages) > 0

    dead, compared = _dead(channels, alive, those_with), those_with(channels.contracted)
    known = those_with(channels.read) | compared | dead
    holds = (those_with(channels.read & alive) | compared) & ~dead

    def any_stage(which):
        return np.bincount(channels.channel[which[channels.stage]], minlength=traced.number) > 0

    return any_stage(known) & ~any_stage(holds) & traced.removable()


def _dead(
    channels: Channels, alive: np.ndarray, those_with: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """`[stages]`: those of which all filters are gone that make them.

    Depthwise ones may be left where all that they read is dead.
    """
    read, made = channels.filtered.T
    whole = channels.made & alive
    whole[made] = False
    dead = those_with(channels.made) & ~those_with(whole)
    while True:
        feeding = whole.copy()
        # A filter that is used twice has several entries.
        np.logical_or.at(feeding, made, alive[made] & ~dead[channels.stage[read]])
        if not (fed := dead & those_with(feeding)).any():
            return dead
        dead &= ~fed


def _left_over(traced: Structure, kept: np.ndarray, params: Any, mask: Any) -> str:
    """What may be other than zero of the channels that are removed, as words.

    The first path of which the mask leaves more than zeros that belong to them, if there is one.
    Biases and normalisations: the layers that make or read them are told by `kept` itself.
    """
    leaves = trees.flatten(mask)
    layers = traced.channels.made | traced.channels.read
    for path, value in trees.flatten(params).items():
        for axis, own in enumerate(traced.channels.labels[traced.variables[f"params/{path}"]]):
            gone = ~layers[own] & ~kept[traced.channels.channel[own]]
            if gone.any():
                left = np.asarray(leaves[path]) & (np.asarray(value) != 0)
                if (_left_along(left, left.ndim)[axis] & gone).any():
                    return f"what is not zero of {path!r}, which belongs to them"
    return "what becomes of their zeros, such as sigmoid(0)"


def _left_along(leaf: Any, ndim: int) -> list[np.ndarray]:
    """For each axis `[n]`, or `[1]` where the mask does not tell: what is left at each position."""
    leaf = np.asarray(leaf).reshape(np.shape(leaf) or (1,) * ndim)
    return [leaf.any(axis=tuple(a for a in range(ndim) if a != axis)) for axis in range(ndim)]


def _refuse_fixed(traced: Structure, path: str, axis: int, labels: np.ndarray) -> None:
    for channel in traced.channels.channel[labels]:
        if int(channel) in traced.channels.fixed:
            raise ValueError(
                f"mask removes positions of axis {axis} of {path!r}, which cannot be removed: "
                f"{traced.channels.fixed[int(channel)]}. Exclude this path from pruning."
            )


def rounded_up(
    traced: Structure, groups: Sequence[np.ndarray], kept: np.ndarray, multiple: int
) -> np.ndarray:
    """`[channels]` booleans: what is kept, and as many more channels as make round widths.

    The width of a layer is how many positions are left on an axis along which it makes channels:
    several of one channel in a grouped convolution, say, and those of channels that must stay. Each
    becomes a multiple, or stays whole.

    Args:
      traced: the network's structure.
      groups: of `groups`, the channels of each in the order in which they come back.
      kept: `[channels]` booleans.
      multiple: at least 1.
    """
    axes = [traced.along(path)[axis] for path, axis in _made(traced)]
    # Those of most layers first: what fits them all is found among the others then.
    groups = sorted(groups, key=lambda group: -sum(np.isin(group, axis).any() for axis in axes))
    waiting = np.zeros(traced.number, bool)
    waiting[np.concatenate([np.zeros(0, int), *groups])] = True
    kept = kept.copy()
    for group in groups:
        waiting[group] = False
        own = [axis for axis in axes if np.isin(axis, group).any() and not waiting[axis].any()]
        kept[_to_bring_back(group, kept, own, multiple)] = True
    while uneven := [axis for axis in axes if not _is_round(axis, kept[axis].sum(), multiple)]:
        kept[np.concatenate(uneven)] = True  # left whole
    return kept


def _to_bring_back(
    group: np.ndarray, kept: np.ndarray, axes: Sequence[np.ndarray], multiple: int
) -> np.ndarray:
    """As many of the group's removed channels, the first ones, as make all axes round, or none."""
    gone = group[~kept[group]]
    fits = np.ones(len(gone) + 1, bool)
    for axis in axes:
        positions = np.bincount(axis, minlength=len(kept))
        widths = kept[axis].sum() + np.concatenate([[0], np.cumsum(positions[gone])])
        fits &= _is_round(axis, widths, multiple)
    return gone[: fits.argmax()]


def _is_round(axis: np.ndarray, width: Any, multiple: int) -> Any:
    return (width % multiple == 0) | (width == len(axis))


def makers(traced: Structure, group: np.ndarray) -> list[str]:
    """Paths of the weights that make these channels."""
    return [
        path.removeprefix("params/")
        for path, variable in traced.variables.items()
        for own, channels in zip(traced.channels.labels[variable], traced.along(path), strict=True)
        if (traced.channels.made[own] & np.isin(channels, group)).any()
    ]


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
    if paths := makers(traced, compared[~kept[compared]]):
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


def remove_blocks(
    classifier: Classifier, names: Sequence[str], image_shape: tuple[int, ...]
) -> Classifier:
    """The network without some of its residual blocks: x + f(x) becomes x.

    Computes what the network does when all parameters of those blocks are zero, which is nothing
    where f ends in a linear layer or a normalisation.

    Args:
      classifier: the network.
      names: of blocks with an identity shortcut, as `residual.blocks` lists them.
      image_shape: of one image.

    Raises:
      ValueError: a name that no such block has.
    """
    traced = structure.of(classifier.apply_fn, classifier.variables, image_shape)
    gone = {path for block in residual.chosen(traced, names) for path in block.variables}
    network = shrunk.whole(classifier.apply_fn, classifier.variables)
    network = dataclasses.replace(network, blocks=(*network.blocks, *dict.fromkeys(names)))
    network.left(jax.ShapeDtypeStruct((2, *image_shape), jnp.float32))  # where a name is no other's
    return Classifier(trees.drop(classifier.variables, gone), network)
