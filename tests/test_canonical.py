"""The rewritten function is the same function, and its convolutions have one layout."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend import core

from prunejax.canonical import canonical
from prunejax.canonical.stored import stored

NHWC = ("NHWC", "HWIO", "NHWC")
rng = np.random.default_rng(0)


def array(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def conv(x, w, strides=(1, 1), padding="SAME", numbers=NHWC, **options):
    return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=numbers, **options)


def equations(jaxpr):
    """All the equations of a program and of the programs inside it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(
            list(eqn.params.values()),
            is_leaf=lambda p: isinstance(p, core.Jaxpr | core.ClosedJaxpr),
        ):
            if isinstance(inner, core.ClosedJaxpr):
                inner = inner.jaxpr
            if isinstance(inner, core.Jaxpr):
                yield from equations(inner)


def layouts(function, *args):
    program = jax.make_jaxpr(function)(*args).jaxpr
    return [
        tuple(eqn.params["dimension_numbers"])
        for eqn in equations(program)
        if eqn.primitive is lax.conv_general_dilated_p
    ]


def is_canonical(numbers):
    lhs, rhs, out = numbers
    rank = len(lhs)
    features_last = (0, rank - 1, *range(1, rank - 1))
    return (lhs, rhs, out) == (features_last, (rank - 1, rank - 2, *range(rank - 2)), features_last)


def assert_same(function, *args):
    """`canonical(function)` gives what `function` gives, and its convolutions are canonical."""
    assert layouts(function, *args)  # there is something to rewrite
    assert all(map(is_canonical, layouts(canonical(function), *args)))
    expected, out = jax.jit(function)(*args), jax.jit(canonical(function))(*args)
    assert jax.tree.structure(out) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(out), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


def value_and_grads(function):
    """The value, and the gradients of a scalar that weighs its entries unequally."""

    def scalar(*args):
        out = function(*args)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size).reshape(out.shape))), out

    return lambda *args: jax.value_and_grad(scalar, argnums=(0, 1), has_aux=True)(*args)


X, W = array(2, 6, 5, 4), array(3, 3, 4, 6)


@pytest.mark.parametrize(
    ("x", "w", "options"),
    [
        (X, W, {}),
        (X, W, {"strides": (2, 3), "padding": "VALID"}),
        (X, W, {"strides": (2, 2), "padding": ((0, 2), (1, 0))}),
        (X, array(3, 2, 2, 6), {"feature_group_count": 2}),
        (X, array(3, 3, 1, 8), {"feature_group_count": 4}),
        (array(4, 6, 5, 4), W, {"batch_group_count": 2}),
        (X, W, {"rhs_dilation": (2, 1)}),
        (X, W, {"lhs_dilation": (2, 2), "padding": ((1, 2), (2, 1))}),
        (array(2, 4, 6, 5), array(6, 4, 3, 3), {"numbers": ("NCHW", "OIHW", "NCHW")}),
        (array(6, 4, 5, 2), array(4, 3, 6, 3), {"numbers": ("HCWN", "IHOW", "CWNH")}),
        (array(2, 7, 3), array(3, 3, 5), {"strides": (2,), "numbers": ("NWC", "WIO", "NWC")}),
        (
            array(2, 4, 3, 5, 2),
            array(2, 2, 3, 2, 3),
            {"strides": (1, 2, 1), "numbers": ("NDHWC", "DHWIO", "NDHWC")},
        ),
    ],
    ids=[
        *["plain", "strides", "padding", "groups", "depthwise", "batch groups", "dilation"],
        *["lhs dilation", "NCHW", "any layout", "1-D", "3-D"],
    ],
)
def test_values_and_gradients_of_every_kind_of_convolution(x, w, options):
    assert_same(value_and_grads(lambda x, w: conv(x, w, **options)), x, w)


def test_transposed_convolution():
    assert_same(value_and_grads(lambda x, w: lax.conv_transpose(x, w, (2, 2), "SAME")), X, W)


# One small network: its gradient has convolutions of other layouts.
A, B = array(3, 3, 1, 4), array(3, 3, 4, 2)
IMAGES = array(3, 6, 6, 1)


def network(params, x):
    a, b = params
    return jnp.sum(conv(jax.nn.relu(conv(x, a, (2, 2))), b), axis=(1, 2))


def loss(params, x):
    return jnp.sum(network(params, x) ** 2)


gradients = jax.grad(loss, argnums=(0, 1))


def inside_scan(params, x):
    def step(x, scale):
        dx = gradients(params, x)[1]
        return x + 1e-3 * scale * jnp.sign(dx), loss(params, x)

    return lax.scan(step, x, jnp.array([1.0, 0.5, 2.0]))


def inside_fori(params, x):
    return lax.fori_loop(0, 3, lambda i, x: x - 1e-3 * i * gradients(params, x)[1], x)


def inside_while(params, x):
    # The condition has a convolution too, and the counter starts as a Python number.
    go_on = lambda state: (state[0] < 4) & (loss(params, state[1]) > 0)  # noqa: E731
    step = lambda state: (state[0] + 1, state[1] - 1e-3 * gradients(params, state[1])[1])  # noqa: E731
    return lax.while_loop(go_on, step, (0, x))


def inside_cond(params, x):
    branches = [
        lambda: gradients(params, x)[1],
        lambda: 2 * x,
        lambda: network(params, x).sum() * x,
    ]
    return [
        lax.cond(x[0, 0, 0, 0] > x[0, 1, 0, 0], branches[0], branches[1]),
        lax.switch(jnp.int32(x[0, 0, 0, 0] > 0) + 1, branches),
    ]


def rematerialised(params, x):
    return jax.grad(lambda p: jnp.sum(jax.checkpoint(network)(p, x) ** 2))(params)


def rematerialised_constants(params, x):
    # The kernel is a constant of the inner function, not an argument of it.
    return jax.grad(lambda x: jax.checkpoint(lambda x: jnp.sum(network((A, B), x) ** 3))(x))(x)


def jit_in_jit(params, x):
    return jax.jit(lambda x: jax.jit(gradients)(params, 2 * x))(x)


def vmapped_inside(params, x):
    per_example = jax.vmap(lambda x: jax.grad(loss)(params, x[None]))(x)
    # A kernel an example becomes a convolution of groups.
    per_kernel = jax.vmap(lambda a: gradients((a, params[1]), x))(jnp.stack([params[0]] * 2))
    return per_example, per_kernel


def forward_mode(params, x):
    return jax.jvp(lambda x: network(params, x), (x,), (jnp.ones_like(x),))


def custom_rule(params, x):
    @jax.custom_vjp
    def scaled(x):
        return network(params, x)

    scaled.defvjp(lambda x: (scaled(x), x), lambda x, g: (x * g.sum(),))
    return scaled(x), jax.grad(lambda x: scaled(x).sum())(x)


def everything_nested(params, x):
    @jax.checkpoint
    def inner(x):
        return lax.scan(lambda x, _: (inside_fori(params, x), None), x, length=2)[0]

    return lax.cond(x.sum() > 1e9, lambda x: x, jax.jit(inner), x)


@pytest.mark.parametrize(
    "function",
    [
        inside_scan,
        inside_fori,
        inside_while,
        inside_cond,
        rematerialised,
        rematerialised_constants,
        jit_in_jit,
        vmapped_inside,
        forward_mode,
        custom_rule,
        everything_nested,
    ],
)
def test_values_inside_loops_branches_and_calls(function):
    assert_same(function, (A, B), IMAGES)


def test_vmapped_outside():
    stacks = (jnp.stack([A, -A]), jnp.stack([B, 2 * B]))
    for in_axes, args in [((None, 0), ((A, B), IMAGES[:, None])), ((0, None), (stacks, IMAGES))]:
        expected = jax.jit(jax.vmap(gradients, in_axes))(*args)
        out = jax.jit(jax.vmap(canonical(gradients), in_axes))(*args)
        for a, b in zip(jax.tree.leaves(out), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


def test_tracers_may_be_closed_over():
    def total(scale, x):
        def step(x, _):
            step_of = canonical(lambda x: x - scale * gradients((A, B), x)[1])
            return step_of(x), None

        return lax.scan(step, x, length=2)[0]

    expected = IMAGES
    for _ in range(2):
        expected = expected - 1e-3 * gradients((A, B), expected)[1]
    np.testing.assert_allclose(jax.jit(total)(1e-3, IMAGES), expected, rtol=2e-4, atol=2e-4)


def test_what_is_not_a_convolution_is_left_as_it_is():
    def function(tree, key):
        draws = jax.random.normal(key, (3,))
        ordered = jnp.sort(tree["x"] + draws)
        return {"out": ordered, "same": tree["y"], "constant": 3.0, "key": jax.random.split(key)[0]}

    tree, key = {"x": array(3), "y": jnp.arange(2)}, jax.random.key(3)
    out, expected = canonical(function)(tree, key), function(tree, key)
    assert jax.tree.structure(out) == jax.tree.structure(expected)
    np.testing.assert_array_equal(out["out"], expected["out"])
    np.testing.assert_array_equal(out["same"], expected["same"])
    assert out["constant"] == 3.0
    assert jnp.all(jax.random.key_data(out["key"]) == jax.random.key_data(expected["key"]))


def test_an_attack_inside_a_training_step_has_only_canonical_convolutions():
    def training_step(params, x):
        attacked = inside_scan(params, x)[0]
        return jax.grad(loss)(params, attacked)

    plain = layouts(training_step, (A, B), IMAGES)
    assert not all(map(is_canonical, plain))  # gradients bring other layouts
    rewritten = layouts(canonical(training_step), (A, B), IMAGES)
    assert len(rewritten) == len(plain) - 1  # the strided one's gradient is a matrix product
    assert all(map(is_canonical, rewritten))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [
        ((1, 1), 2, ((0, 0), (0, 0))),
        ((3, 3), 2, ((1, 1), (1, 1))),
        ((3, 3), 2, ((0, 1), (0, 1))),
        ((4, 4), 2, ((1, 1), (1, 1))),
        ((5, 2), 2, ((0, 1), (2, 0))),
        ((2, 3), 3, ((0, 0), (0, 0))),
        ((3, 4), 3, ((1, 1), (0, 2))),
    ],
)
def test_a_strided_convolution_and_its_gradient(kernel, stride, padding):
    x = jax.random.normal(jax.random.key(0), (2, 7, 9, 3))
    w = jax.random.normal(jax.random.key(1), (*kernel, 3, 4))

    def gradient(x, w):
        def convolve(x):
            return jax.lax.conv_general_dilated(
                x, w, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )

        out, vjp = jax.vjp(convolve, x)
        return out, vjp(jnp.sin(out))[0]

    expected, found = gradient(x, w), jax.jit(canonical(gradient))(x, w)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)
    # Nothing multiplies inserted zeros: each pixel meets each tap once.
    program = jax.make_jaxpr(canonical(gradient))(x, w).jaxpr
    (eqn,) = (e for e in equations(program) if e.primitive is lax.conv_general_dilated_p)
    assert eqn.params["lhs_dilation"] == (1, 1)
    (eqn,) = (e for e in equations(program) if e.primitive is lax.dot_general_p)
    assert eqn.outvars[0].aval.size == expected[0][..., 0].size * w[..., 0].size


@pytest.mark.parametrize(
    ("size", "kernel", "strides", "padding"),
    [
        ((1, 1), (7, 7), (2, 2), ((4, 3), (3, 4))),  # of a kernel that is larger than the image
        ((3, 2), (2, 5), (2, 3), ((0, 1), (4, 2))),
        ((4, 3), (1, 1), (3, 1), ((0, 2), (0, 0))),
        ((4, 5), (3, 2), (2, 2), ((-2, 1), (1, -3))),
        ((2, 2), (4, 3), (2, 2), ((0, 0), (1, 1))),  # nothing is left of the rows
    ],
)
def test_the_gradient_of_a_strided_convolution_by_hand(size, kernel, strides, padding):
    x, w = array(2, *size, 3), array(*kernel, 3, 2)
    lengths = [(n - 1) * s + 1 for n, s in zip(size, strides, strict=True)]
    with_zeros = np.zeros((2, *(length + 20 for length in lengths), 3))
    with_zeros[:, 10 : 10 + lengths[0] : strides[0], 10 : 10 + lengths[1] : strides[1]] = x
    sizes = [
        max(0, n + sum(pad) - k + 1) for n, pad, k in zip(lengths, padding, kernel, strict=True)
    ]
    expected = np.zeros((2, *sizes, 2))
    for p, q in np.ndindex(*sizes):
        row, column = 10 - padding[0][0] + p, 10 - padding[1][0] + q
        seen = with_zeros[:, row : row + kernel[0], column : column + kernel[1]]
        expected[:, p, q] = np.einsum("nhwf,hwfc->nc", seen, w)
    function = functools.partial(conv, padding=padding, lhs_dilation=strides)
    out = jax.jit(canonical(function))(x, w)
    assert out.shape == expected.shape
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere XLA has its own code")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_gradient_of_a_strided_convolution_sums_in_float32(dtype):
    """Of 16 taps of ones each output gets four, of 512 features each: sums of 2048 a half."""
    w, cotangent = jnp.ones((4, 4, 1, 512), dtype), jnp.full((1, 5, 5, 512), 1.001, dtype)
    convolve = functools.partial(conv, w=w, strides=(2, 2))

    def gradient(cotangent):
        return jax.vjp(convolve, jnp.zeros((1, 10, 10, 1), dtype))[1](cotangent)[0]

    found = jax.jit(canonical(gradient))(cotangent)
    exact = 4 * 512 * np.float64(cotangent[0, 0, 0, 0])
    assert found.dtype == dtype
    np.testing.assert_allclose(found[0, 4, 4, 0].astype(float), exact, rtol=jnp.finfo(dtype).eps)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="made for XLA's CPU compiler")
@pytest.mark.parametrize("witness", [0.0, -0.0, 1.5, -3e38, 1e-45, np.inf, -np.inf, np.nan])
def test_what_is_stored_is_itself_whatever_the_witness(witness):
    x = jnp.array([[np.nan, np.inf], [-0.0, 3.0]])
    function = jax.jit(stored)
    out = function(x, jnp.array([[witness]]))
    np.testing.assert_array_equal(np.signbit(out), np.signbit(x))
    np.testing.assert_array_equal(out, x)
    compiled = function.lower(x, jnp.array([[witness]])).compile().as_text()
    assert " conditional(" in compiled  # the compiler cannot tell which branch is taken


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere nothing is widened")
@pytest.mark.parametrize(
    ("inputs", "features", "stride", "kernel"),
    [
        (1, 16, 1, (3, 2, 2, 32)),
        (2, 6, 1, (3, 2, 8, 24)),
        (1, 16, 2, (3, 1, 4, 32)),
        (3, 32, 1, (3, 2, 6, 64)),
        (3, 32, 2, (3, 1, 6, 32)),
        (1, 2, 3, (3, 1, 6, 4)),  # a row has three outputs: no use in blocks of sixteen
        (4, 32, 1, (3, 2, 4, 32)),
        (3, 33, 1, (3, 2, 3, 33)),
        (9, 16, 1, (3, 2, 18, 32)),
    ],
)
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((0, 1), (3, -2))])
def test_few_channels_become_as_many_as_are_fast(inputs, features, stride, kernel, padding):
    x, w = array(2, 8, 9, inputs), array(3, 2, inputs, features)

    def convolve(x, w):
        return conv(x, w, (2, stride), padding)

    assert_same(convolve, x, w)
    program = jax.make_jaxpr(canonical(convolve))(x, w).jaxpr
    (eqn,) = (e for e in equations(program) if e.primitive is lax.conv_general_dilated_p)
    assert eqn.invars[1].aval.shape == kernel


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere XLA swaps nothing")
@pytest.mark.parametrize(
    ("x", "w", "options"),
    [
        (array(4, 2, 2, 40), array(3, 3, 40, 36), {}),
        (array(4, 1, 1, 40), array(3, 3, 40, 36), {}),
        (array(4, 3, 4, 40), array(5, 5, 40, 36), {"strides": (2, 2)}),
        (array(4, 2, 3, 40), array(3, 3, 40, 36), {"padding": ((2, 1), (0, 1))}),
        (array(4, 2, 2, 40), array(2, 3, 40, 36), {"rhs_dilation": (2, 1)}),
        (array(4, 2, 2, 3), array(3, 3, 3, 8), {}),  # few channels, which are widened
        (array(4, 2, 40), array(3, 40, 36), {"numbers": ("NWC", "WIO", "NWC")}),
    ],
)
def test_an_image_smaller_than_the_kernel_stays_the_image(x, w, options):
    """XLA's CPU compiler would take the larger of the two for the image, and be 40 times slower."""
    both = value_and_grads(lambda x, w: conv(x, w, **{"strides": (1,) * (x.ndim - 2), **options}))
    assert_same(both, x, w)
    compiled = jax.jit(canonical(both)).lower(x, w).compile().as_text()
    found = re.findall(r" convolution\(.*dim_labels=(\w+->\w+)", compiled)
    assert len(found) == (2 if "strides" in options else 3)  # a strided one's is a matrix product
    assert {*found} == {"b01f_01io->b01f" if x.ndim == 4 else "b0f_0io->b0f"}


@pytest.mark.parametrize("channels", [(2, 1), (1, 2), (4, 4), (16, 16), (32, 32)])
@pytest.mark.parametrize("padding", [((-1, 1), (1, 0)), ((1, -2), (0, 1)), ((-9, 8), (0, 0))])
def test_padding_may_be_negative(channels, padding):
    """jaxlib 0.10 reads beyond the image in some of these, so the comparison is with none of it."""
    inputs, features = channels
    x, w = array(2, 8, 7, inputs), array(2, 3, inputs, features)
    by_hand = np.pad(x, ((0, 0), (9, 9), (9, 9), (0, 0)))
    rows, columns = (
        slice(9 - low, 9 + n + high) for (low, high), n in zip(padding, (8, 7), strict=True)
    )
    expected = conv(jnp.asarray(by_hand[:, rows, columns]), w, padding="VALID")
    out = jax.jit(canonical(functools.partial(conv, padding=padding)))(x, w)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere groups stay groups")
@pytest.mark.parametrize(
    ("x", "w", "options"),
    [
        (X, array(3, 3, 1, 4), {"feature_group_count": 4}),
        (X, array(3, 2, 1, 12), {"feature_group_count": 4}),
        (X, array(3, 2, 1, 4), {"feature_group_count": 4, "strides": (2, 3)}),
        (X, array(2, 3, 1, 8), {"feature_group_count": 4, "padding": ((2, 0), (-1, 3))}),
        (X, array(2, 3, 1, 4), {"feature_group_count": 4, "rhs_dilation": (2, 1)}),
        (
            X,
            array(3, 2, 1, 4),
            {"feature_group_count": 4, "lhs_dilation": (2, 3), "padding": ((1, 2), (2, -1))},
        ),
        (X, array(3, 3, 2, 6), {"feature_group_count": 2}),
        (X, array(3, 3, 2, 6), {"feature_group_count": 2, "strides": (2, 2)}),
        (array(6, 6, 5, 4), array(3, 3, 4, 9), {"batch_group_count": 3}),
        (array(3, 6, 5, 4), array(3, 3, 4, 9), {"batch_group_count": 3, "rhs_dilation": (1, 2)}),
        (
            array(2, 6, 4),
            array(3, 1, 4),
            {"feature_group_count": 4, "strides": (2,), "numbers": ("NWC", "WIO", "NWC")},
        ),
        (
            array(2, 4, 3, 5, 2),
            array(2, 2, 3, 1, 2),
            {
                "feature_group_count": 2,
                "strides": (1, 2, 1),
                "numbers": ("NDHWC", "DHWIO", "NDHWC"),
            },
        ),
    ],
)
def test_groups_become_convolutions_of_their_own(x, w, options):
    """With their gradients, and the gradients of these: none is left that XLA would be slow at."""

    def convolve(x, w):
        return conv(x, w, **{"strides": (1,) * (x.ndim - 2), **options})

    def product_with_hessian(x, w):
        gradient = jax.grad(lambda x, w: jnp.sum(jnp.sin(convolve(x, w))), argnums=(0, 1))
        return jax.jvp(gradient, (x, w), (jnp.cos(x), jnp.sin(w)))

    for function in (value_and_grads(convolve), product_with_hessian):
        expected, out = jax.jit(function)(x, w), jax.jit(canonical(function))(x, w)
        chex.assert_trees_all_close(out, expected, rtol=2e-4, atol=2e-4)
        program = str(jax.make_jaxpr(canonical(function))(x, w))
        assert {*re.findall(r"group_count=(\d+)", program)} <= {"1"}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere groups stay groups")
def test_too_many_groups_taps_or_features_stay_as_they_are():
    """Programs would be as long as they are many, or no faster."""
    for function, args in [
        (
            functools.partial(conv, feature_group_count=65),
            (array(1, 3, 3, 130), array(2, 2, 2, 65)),
        ),
        (functools.partial(conv, feature_group_count=3), (array(1, 14, 14, 3), array(8, 8, 1, 3))),
        (functools.partial(conv, feature_group_count=3), (array(1, 4, 4, 3), array(2, 2, 1, 15))),
    ]:
        assert len(layouts(canonical(function), *args)) == 1
        assert_same(function, *args)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere groups stay groups")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_depthwise_convolution_sums_in_float32(dtype):
    # 1 + 15 x 2^-9: each addition by itself would be lost, in bfloat16.
    x = jnp.full((1, 4, 4, 2), 1, dtype)
    w = jnp.full((4, 4, 1, 2), 2.0**-9, dtype).at[0, 0].set(1)
    depthwise = functools.partial(conv, padding="VALID", feature_group_count=2)
    out = canonical(depthwise)(x, w)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, jnp.asarray(1 + 15 * 2.0**-9, dtype))
