"""Queries of one window agree with full passes, wherever it is, and do less work."""

import functools
import itertools
import re

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from prunejax import jaxprs, models
from prunejax.canonical import canonical
from prunejax.incremental import spans, windowed

BATCH = 2


def array(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def conv(x, *shape, strides=1, padding="SAME", numbers=("NHWC", "HWIO", "NHWC"), **options):
    """With a kernel of this shape."""
    kernel = array(len(shape) + sum(shape), *shape) / np.sqrt(np.prod(shape[:3]))
    return lax.conv_general_dilated(
        x, kernel, (strides, strides), padding, dimension_numbers=numbers, **options
    )


def dense(x, units):
    return x @ (array(units, x.shape[1], units) / np.sqrt(x.shape[1])) + array(7, units)


def flat_dense(x, units=3):
    return dense(x.reshape(len(x), -1), units)


def mean_dense(x):
    return dense(x.mean((1, 2)), 3)


def normalised(x):
    """As batch normalisation does with statistics of its own."""
    mean, scale = array(1, x.shape[-1]), array(2, x.shape[-1])
    return (x - mean) * lax.rsqrt(scale**2 + 0.1) + array(3, x.shape[-1])


# -- networks by what they hold, and the images that they are tried on


def strided(x):
    x = nn.relu(conv(x, 4, 4, 1, 4, strides=2, padding=((1, 1), (1, 1))) + array(0, 4))
    x = nn.relu(conv(x, 4, 4, 4, 6, strides=2, padding=((1, 1), (1, 1))))
    return dense(nn.relu(flat_dense(x, 8)), 3)


def residual(x):
    x = nn.relu(normalised(conv(x, 3, 3, 3, 4)))
    x = nn.relu(x + normalised(conv(nn.relu(conv(x, 3, 3, 4, 4)), 1, 1, 4, 4)))
    y = nn.relu(normalised(conv(x, 3, 3, 4, 6, strides=2, padding=((1, 1), (1, 1)))))
    shortcut = normalised(conv(x, 1, 1, 4, 6, strides=2, padding="VALID"))
    return mean_dense(nn.relu(shortcut + y))


def option_a(x):
    x = conv(x, 3, 3, 3, 4)
    y = conv(x, 3, 3, 4, 6, strides=2, padding=((1, 1), (1, 1)))
    return mean_dense(nn.relu(y + jnp.pad(x[:, ::2, ::2], ((0, 0),) * 3 + ((0, 2),))))


def pooled(x):
    x = nn.max_pool(conv(x, 3, 3, 1, 4), (3, 3), (2, 2), padding=((1, 1), (0, 2)))
    x = nn.avg_pool(x - 1, (2, 2), (1, 1), padding="SAME", count_include_pad=False)
    return flat_dense(-nn.max_pool(-models.layers.max_pool_2x2(x), (2, 2)))


def spread(x):
    x = nn.relu(conv(x, 3, 2, 1, 4, rhs_dilation=(2, 3), padding=((1, 0), (0, 4))))
    x = nn.relu6(conv(x, 3, 3, 1, 8, feature_group_count=4, strides=2))
    return flat_dense(conv(x, 2, 3, 4, 4, feature_group_count=2, padding="VALID"))


def padded(x):
    x = jnp.pad(x, ((0, 0), (2, 1), (0, 3), (0, 0)), constant_values=0.5)
    x = conv(x, 3, 3, 2, 4, padding=((-1, 2), (1, -2)))
    return flat_dense(jnp.concatenate([x, jnp.ones_like(x), x**2], axis=3)[:, 1:, 2:-1, 1:])


def gated(x):  # squeeze and excite
    x = conv(x, 3, 3, 1, 4, strides=2)
    gate = nn.sigmoid(dense(x.mean((1, 2)), 4))[:, None, None]
    return mean_dense(nn.relu(conv(x * gate + x, 3, 3, 4, 4)))


def turned(x):  # flattened in another order, after an operation without a rule
    x = lax.cumsum(conv(x, 3, 3, 1, 2), axis=1) + jnp.swapaxes(conv(x, 3, 3, 1, 2), 1, 2)[:, ::-1]
    return flat_dense(x.transpose(0, 3, 1, 2))


def transposed(x):
    x = conv(x, 3, 3, 1, 4, strides=2)
    x = nn.relu(conv(x, 2, 2, 4, 4, lhs_dilation=(2, 2), padding=((1, 1), (1, 0))))
    return x.reshape(len(x), -1, 4).max(1)


def other_layout(x):
    x = conv(x.transpose(0, 3, 1, 2), 3, 3, 2, 4, numbers=("NCHW", "HWIO", "NCHW"))
    x = conv(x, 3, 3, 4, 4, strides=2, numbers=("NCHW", "HWIO", "NHWC"))
    return mean_dense(nn.relu(x))


def perceptron(x):
    return dense(nn.relu(flat_dense(x / 2 + 1, 6)), 3)


def positioned(x):  # constants that differ from place to place
    _, height, width, _ = x.shape
    x = jnp.where(array(4, height, width, 1) > 0, x, array(5, 1, width, 1)) * array(6, height, 1, 1)
    return mean_dense(conv(jnp.concatenate([x, 0 * x + array(8, height, width, 1)], 3), 3, 3, 2, 2))


def shared(x):  # a map that is read with several margins and by several operations
    x = (conv(x, 3, 3, 1, 4) - 3)[:, 1:-1, 2:-2]
    y = conv(x, 5, 5, 4, 4) + conv(x, 3, 3, 4, 4)
    return flat_dense(y + nn.max_pool(x, (3, 3), (1, 1), padding="SAME"))


def crossed(x):  # maps that meet others of one row or column
    x = conv(x, 3, 3, 1, 4)
    return mean_dense(jnp.tanh(x * x[:, :, 3:4] + x[:, 5:6]))


def swapped(x):  # a convolution whose rows are the columns
    x = conv(x, 3, 2, 1, 4, numbers=("NWHC", "HWIO", "NWHC"), padding=((2, 0), (0, 0)))
    return mean_dense(conv(nn.relu(x), 2, 3, 4, 4, padding=((0, 1), (0, 0))))


def unusual(x):  # poolings over channels and of what is spread, a sum over the rows alone
    x = conv(x, 3, 3, 1, 4)
    y = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 2), (1, 1, 1, 1), "SAME")
    edges, apart = ((0, 0), (1, 2), (2, 0), (0, 0)), (1, 2, 3, 1)
    z = lax.reduce_window(x, 0.0, lax.add, (1, 3, 2, 1), (1, 2, 2, 1), edges, base_dilation=apart)
    both = jnp.concatenate([x, 2 * x[:, ::-1]], axis=1)
    return mean_dense(y) + mean_dense(z) + flat_dense(x.sum(1)) + flat_dense(both.sum(1))


NETWORKS = [
    (strided, (12, 15, 1), (3, 2)),
    (residual, (11, 8, 3), (2, 3)),
    (option_a, (9, 10, 3), (1, 2)),
    (pooled, (13, 14, 1), (2, 2)),
    (spread, (14, 13, 1), (2, 1)),
    (padded, (9, 8, 2), (2, 2)),
    (gated, (12, 11, 1), (2, 2)),
    (turned, (9, 9, 1), (2, 2)),
    (transposed, (10, 9, 1), (2, 3)),
    (other_layout, (8, 9, 2), (2, 2)),
    (shared, (14, 15, 1), (2, 1)),
    (crossed, (9, 8, 1), (2, 1)),
    (swapped, (10, 11, 1), (1, 2)),
    (unusual, (9, 10, 1), (2, 2)),
    (perceptron, (5, 7, 2), (2, 3)),
    (perceptron, (4, 3, 1), (4, 3)),  # the window is the image
    (positioned, (8, 7, 1), (2, 2)),
]
networks = pytest.mark.parametrize(
    ("network", "shape", "size"), NETWORKS, ids=[f"{n.__name__}-{s}" for n, s, _ in NETWORKS]
)


def written(images, corner, patch):
    """The images with the patch, by hand."""
    images, (row, column) = np.array(images), corner
    images[:, row : row + patch.shape[1], column : column + patch.shape[2]] = patch
    return images


def assert_close(found, expected, tolerance=1e-5):
    scale = np.abs(expected[np.isfinite(expected)]).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


def assert_right_everywhere(network, images, size, tolerance=1e-5):
    """For the window at each corner."""
    patch = 3 * array(9, len(images), *size, images.shape[3]).astype(images.dtype)
    ends = (n - side + 1 for n, side in zip(images.shape[1:3], size, strict=True))
    corners = np.array(list(itertools.product(*map(range, ends))))
    changes = windowed(network, images, size)

    @jax.jit
    def looks(images, patch):
        kept = changes.start(images)
        return lax.map(lambda corner: changes.look(kept, corner, patch)[0], corners)

    found = np.asarray(looks(images, patch), np.float32)
    changed = np.concatenate([written(images, corner, patch) for corner in corners])
    expected = np.asarray(jax.jit(network)(changed), np.float32).reshape(found.shape)
    assert_close(found, expected, tolerance)
    before = np.asarray(network(images), np.float32)
    assert np.abs(expected - before).max() > 0.1 * np.abs(before).max()  # there was much to see


@networks
def test_logits_are_those_of_the_changed_images_wherever_the_window_is(network, shape, size):
    assert_right_everywhere(network, array(0, BATCH, *shape), size)


@pytest.mark.parametrize(
    ("name", "shape", "size", "options"),
    [
        ("strided_cnn", (14, 14, 1), (3, 3), {"widths": (3, 4, 5)}),
        ("lenet5", (14, 14, 1), (2, 2), {"widths": (2, 3, 4)}),
        ("resnet8", (12, 12, 3), (2, 2), {"width": 2}),
        ("resnet20", (12, 12, 3), (1, 1), {"width": 2}),
        ("vgg11", (32, 32, 1), (1, 1), {"widths": (2,) * 8}),
        ("mobilenet_v2", (16, 16, 3), (1, 1), {"width": 0.1}),
        ("mlp", (5, 5, 1), (2, 2), {}),
    ],
)
def test_networks_of_the_library(name, shape, size, options):
    network, images = models.create(name, 4, **options), array(0, BATCH, *shape)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    leaves, structure = jax.tree.flatten(shapes)
    rng = np.random.default_rng(1)
    filled = [  # so that statistics are positive and no layer's outputs vanish
        rng.normal(size=x.shape) * np.sqrt(2 / np.prod(x.shape[:-1]))
        if x.ndim > 1
        else rng.uniform(0.5, 1, x.shape)
        for x in leaves
    ]
    variables = jax.tree.unflatten(structure, [jnp.asarray(x, jnp.float32) for x in filled])
    changes = windowed(functools.partial(network.apply, variables), images, size)
    looked = jax.jit(changes.look)
    kept, patch = jax.jit(changes.start)(images), 5 * array(9, BATCH, *size, shape[2])
    most = np.array(shape[:2]) - size
    for corner in (np.array([0, 0]), most, most // 2, most // 3):
        logits = looked(kept, corner, patch)[0]
        assert_close(logits, np.asarray(network.apply(variables, written(images, corner, patch))))


@networks
def test_what_is_kept_is_that_of_the_images_taken_over(network, shape, size):
    rng, images = np.random.default_rng(0), array(0, BATCH, *shape)
    changes = windowed(network, images, size)
    start, look, keep = map(jax.jit, (changes.start, changes.look, changes.keep))
    kept = start(images)
    for _ in range(30):
        corner = rng.integers(0, np.array(shape[:2]) - size + 1)
        patch = rng.normal(size=(BATCH, *size, shape[2])).astype("f4")
        which = rng.integers(0, 2, BATCH).astype(bool)
        new = written(images, corner, patch)
        logits, fresh = look(kept, corner, patch)
        kept = keep(kept, corner, fresh, which)
        images = np.where(which[:, None, None, None], new, images)
    assert_close(logits, np.asarray(network(new)))
    for found, expected in zip(kept, start(images), strict=True):
        assert_close(found, np.asarray(expected))


@st.composite
def sweeps(draw):
    """A sweep, the length of the axis that it reads and the size of a change there."""
    kernel, stride, dilation = (draw(st.integers(1, most)) for most in (5, 4, 3))
    low, high = draw(st.integers(-2, 5)), draw(st.integers(-2, 5))
    extent = (kernel - 1) * dilation + 1
    least = max(extent - low - high, 1)
    length = draw(st.integers(least, max(least, 16)))
    outputs = (length + low + high - extent) // stride + 1
    size = draw(st.integers(1, length))
    return spans.Sweep(kernel, stride, dilation, low, outputs), length, size


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(sweeps())
def test_a_span_holds_the_outputs_that_change_and_all_that_they_read(case):
    sweep, length, size = case
    inputs = np.eye(length, dtype=int)[:, :, None, None]  # one changed pixel each

    # By a convolution of ones: which outputs are not zero?
    zeros = [(0, 0), (sweep.low + 9, 40), (0, 0), (0, 0)]
    x = np.pad(inputs, zeros)[:, 9:, 0, 0]
    places = sweep.stride * np.arange(sweep.outputs)[:, None]
    reads = x[:, places + sweep.dilation * np.arange(sweep.kernel)].sum(2)  # [pixel, output]

    change = spans.moving(length, size)
    found = spans.reached(change, sweep)
    tight = 1
    for place, begin in enumerate(found.begin):
        outputs = np.flatnonzero(reads[place : place + size].any(0))
        assert begin >= 0
        assert begin + found.size <= sweep.outputs
        assert set(outputs) <= set(range(begin, begin + found.size))
        tight = max(tight, np.ptp(outputs) + 1 if len(outputs) else 1)
        pixels = np.flatnonzero(reads[:, begin : begin + found.size].any(1))
        read = spans.read(found, sweep)
        assert set(pixels) <= set(range(read.begin[place], read.begin[place] + read.size))
    assert found.size == tight


def multiplications(function, *args):
    """Of the convolutions and the products of matrices."""
    total = 0
    for eqn in jaxprs.flat(function, *args).eqns:
        out = eqn.outvars[0].aval
        if eqn.primitive.name == "conv_general_dilated":
            features = eqn.params["dimension_numbers"].rhs_spec[0]
            kernel = eqn.invars[1].aval.shape
            total += out.size * np.prod(kernel) // kernel[features]
        elif eqn.primitive.name == "dot_general":
            ((axes, _), _) = eqn.params["dimension_numbers"]
            total += out.size * np.prod([eqn.invars[0].aval.shape[axis] for axis in axes])
    return total


@pytest.mark.parametrize(
    ("network", "shape", "side", "share"),
    [(strided, (28, 28, 1), 3, 0.14), (strided, (28, 28, 1), 1, 0.13),
     (residual, (32, 32, 3), 1, 0.1), (option_a, (32, 32, 3), 3, 0.1),
     (pooled, (28, 28, 1), 2, 0.07), (spread, (28, 28, 1), 3, 0.15)],
)  # fmt: skip
def test_a_small_window_is_little_work(network, shape, side, share):
    images = array(0, BATCH, *shape)
    changes = windowed(network, images, (side, side))
    arguments = (changes.start(images), np.zeros(2, int), images[:, :side, :side])
    assert multiplications(changes.look, *arguments) < share * multiplications(network, images)


def loop(changes, rounds=3):
    def search(kept, patch):
        def body(i, kept):
            logits, fresh = canonical(changes.look)(kept, jnp.stack([i, 2 * i]), patch)
            return changes.keep(kept, jnp.stack([i, 2 * i]), fresh, logits[:, 0] > 0)

        return lax.fori_loop(0, rounds, body, kept)

    return search


def test_what_is_kept_is_changed_in_place():
    images = array(0, 8, 28, 28, 1)
    changes = windowed(strided, images, (3, 3))
    kept = changes.start(images)
    assert len(kept) == 4  # images, two maps and the sums of the dense layer
    search = jax.jit(loop(changes), donate_argnums=0)
    program = search.lower(kept, images[:, :3, :3]).compile().as_text()
    for x in kept[:3]:
        shape = ",".join(map(str, x.shape))
        assert f"f32[{shape}]" in program
        assert not re.findall(rf"f32\[{shape}\]\S* copy\(", program)


def test_a_batch_over_several_devices():
    images = array(0, 4, 14, 14, 1)

    def search(images):
        changes = windowed(strided, images, (3, 3))
        return changes.look(loop(changes)(changes.start(images), images[:, 4:7, :3]),
                            np.array([1, 7]), images[:, :3, :3])[0]  # fmt: skip

    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    split = jax.shard_map(
        search, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False
    )
    assert_close(jax.jit(split)(images), np.asarray(jax.jit(search)(images)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_below_32_bits_nothing_is_summed_up_from_query_to_query(dtype):
    images = array(0, BATCH, 8, 8, 1).astype(dtype)

    def network(x):
        return flat_dense(nn.relu(conv(x.astype("f4"), 3, 3, 1, 2)).astype(dtype)).astype(dtype)

    def half(x):
        return x.reshape(len(x), -1) @ array(1, 64, 3).astype(dtype)

    assert_right_everywhere(half, images, (2, 2), tolerance=0.02)
    assert all(entry.window for entry in windowed(half, images, (2, 2)).entries)
    assert_right_everywhere(network, images, (2, 2), tolerance=0.02)


def test_integer_images():
    images = jnp.asarray(np.random.default_rng(0).integers(-99, 0, (BATCH, 9, 9, 1)), jnp.int32)

    def network(x):
        x = lax.reduce_window(x, jnp.iinfo(x.dtype).min, lax.max, (1, 3, 3, 1), (1, 2, 2, 1),
                              ((0, 0), (1, 1), (1, 1), (0, 0)))  # fmt: skip
        return x.sum((1, 2, 3))[:, None]

    assert_right_everywhere(network, images, (2, 2))


def test_shapes_are_enough():
    images = array(0, BATCH, 12, 12, 1)
    shapes = jax.ShapeDtypeStruct(images.shape, images.dtype)
    changes = windowed(strided, shapes, (2, 2))
    corner, patch = np.array([3, 4]), images[:, :2, :2]
    logits, _ = changes.look(changes.start(images), corner, patch)
    assert_close(logits, np.asarray(strided(written(images, corner, patch))))


@pytest.mark.parametrize("size", [(9, 2), (2, 10), (0, 1), (1, 1.5), (1,)])
def test_a_window_has_to_fit_into_the_images(size):
    with pytest.raises(ValueError, match=r"^size"):
        windowed(perceptron, jax.ShapeDtypeStruct((2, 8, 9, 1), jnp.float32), size)


@pytest.mark.parametrize("shape", [(2, 72), (2, 8, 9), (2, 8, 9, 1, 1)])
def test_images_have_four_axes(shape):
    with pytest.raises(ValueError, match=r"^images"):
        windowed(perceptron, jax.ShapeDtypeStruct(shape, jnp.float32), (1, 1))
