"""Pruning inside an Optax optimiser: what is gone stays gone, and nothing else changes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunejax import masks, pruning, trees

INNER = {
    "sgd": lambda: optax.chain(
        optax.add_decayed_weights(1e-2), optax.sgd(0.05, momentum=0.9, nesterov=True)
    ),
    "adamw": lambda: optax.adamw(0.05, weight_decay=1e-2),
}
PATHS = ("first/kernel", "second/kernel")
SIZES = (24, 30)


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    array = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {
        "first": {"kernel": array(4, 6), "bias": array(6)},
        "second": {"kernel": array(6, 5), "bias": array(5)},
    }


def loss(params, step):
    """Moves every weight at every step, pruned ones too if they are not held."""
    targets = parameters(seed=1)
    wave = 1 + 0.5 * jnp.sin(0.7 * step)
    return sum(
        jnp.sum((p - 3 * wave * t) ** 2 * (1 + t**2))
        for p, t in zip(jax.tree.leaves(params), jax.tree.leaves(targets), strict=True)
    )


@functools.partial(jax.jit, static_argnums=(0, 3))
def run(tx, params, state, steps):
    """`steps` updates; returns all the parameters and states on the way, stacked."""

    def step(carry, i):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, i), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, state)

    return jax.lax.scan(step, (params, state), jnp.arange(steps))[1]


def moments(inner_state, params):
    """The parts of an optimiser's state that have the parameters' structure."""
    structure = jax.tree.structure(params)
    like_params = lambda node: jax.tree.structure(node) == structure  # noqa: E731
    nodes = jax.tree.leaves(inner_state, is_leaf=like_params)
    return [node for node in nodes if like_params(node)]


def last(tree):
    return jax.tree.map(lambda x: x[-1], tree)


# -- masks that do not change ----------------------------------------------------------------------


@pytest.mark.parametrize("name", INNER)
def test_pruned_weights_and_moments_are_exactly_zero_for_sixty_steps(name):
    params = parameters()
    mask = pruning.prune(params, 0.8, pruning.Pruner(allocation="global"))
    tx = pruning.masked(INNER[name](), mask)
    # Not masked beforehand: the first update brings the weights to zero.
    trajectory, states = run(tx, params, tx.init(params), 60)

    found = moments(states.inner, params)
    assert len(found) == {"sgd": 1, "adamw": 2}[name]
    for tree in [trajectory, *found]:
        for path, values in trees.flatten(tree).items():
            keep = np.broadcast_to(trees.flatten(mask)[path], values.shape[1:])
            values = np.asarray(values)
            np.testing.assert_array_equal(values[:, ~keep], 0)
            assert np.all(values[:, keep] != 0)
            assert np.all(values[1:][:, keep] != values[:-1][:, keep]), path
    assert int(last(states).step) == 60
    assert masks.density(params, last(states).mask) == (54 - round(0.8 * 54)) / 54


# Masks of each kind: of weights, of filters, of columns; a whole leaf that stays or goes.
MASK_SHAPES = {
    "conv": {"kernel": (1, 1, 1, 4), "bias": (4,)},
    "dense": {"kernel": (4, 6), "bias": ()},
    "head": {"kernel": (1, 5), "bias": ()},
}
SHAPES = {
    "conv": {"kernel": (3, 3, 2, 4), "bias": (4,)},
    "dense": {"kernel": (4, 6), "bias": (6,)},
    "head": {"kernel": (6, 5), "bias": (5,)},
}


def drawn(shapes, seed, draw):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: draw(rng, s), shapes, is_leaf=lambda s: isinstance(s, tuple))


@functools.cache
def under_mask(name):
    """Forty steps of gradients that depend on no weight; the mask is traced: one compilation."""
    normal = lambda rng, shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    params = drawn(SHAPES, 0, normal)
    gradients = drawn(SHAPES, 1, lambda rng, shape: normal(rng, (40, *shape)))

    def trajectory(tx, inner_state):
        def step(carry, grads):
            params, state = carry
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), (params, *moments(inner_state(state), params))

        return jax.lax.scan(step, (params, tx.init(params)), gradients)[1]

    masked = jax.jit(
        lambda mask: trajectory(pruning.masked(INNER[name](), mask), lambda state: state.inner)
    )
    alone = jax.jit(lambda: trajectory(INNER[name](), lambda state: state))()
    # Nothing pruned, in the same program: what follows is exact, this up to fused roundings.
    whole = masked(drawn(MASK_SHAPES, 0, lambda _, shape: np.ones(shape, bool)))
    jax.tree.map(
        lambda out, free: np.testing.assert_allclose(out, free, rtol=1e-5, atol=1e-6), whole, alone
    )
    return masked, whole


@pytest.mark.parametrize("name", INNER)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), density=st.floats(0, 1))
def test_under_any_mask_weights_and_moments_are_zero_outside_and_untouched_inside(
    name, seed, density
):
    mask = drawn(MASK_SHAPES, seed, lambda rng, shape: np.asarray(rng.random(shape) < density))
    masked, whole = under_mask(name)
    found = masked(mask)
    assert len(found) == 1 + {"sgd": 1, "adamw": 2}[name]
    for tree, expected in zip(found, whole, strict=True):
        jax.tree.map(
            lambda out, free, keep: np.testing.assert_array_equal(out, np.where(keep, free, 0)),
            tree,
            expected,
            mask,
        )


@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("wrap", ["masked", "optimizer"])
def test_with_a_dense_mask_updates_are_those_of_the_inner_optimizer_bit_for_bit(name, wrap):
    params, inner = parameters(), INNER[name]()
    tx = {
        "masked": lambda: pruning.masked(inner, masks.dense(params)),
        "optimizer": lambda: pruning.optimizer(
            inner, pruning.Pruner(), pruning.one_shot(0.0, step=2)
        ),
    }[wrap]()
    state, inner_state = tx.init(params), inner.init(params)
    for step in range(4):
        grads = jax.grad(loss)(params, step)
        updates, state = tx.update(grads, state, params)
        expected, inner_state = inner.update(grads, inner_state, params)
        jax.tree.map(np.testing.assert_array_equal, updates, expected)
        jax.tree.map(np.testing.assert_array_equal, state.inner, inner_state)
        params = optax.apply_updates(params, updates)


@pytest.mark.parametrize("name", INNER)
def test_on_a_separable_loss_kept_weights_go_as_if_the_others_did_not_exist(name):
    rng = np.random.default_rng(3)
    start, curvature, center = (jnp.asarray(rng.normal(size=(5, 8)), jnp.float32) for _ in range(3))
    quadratic = lambda w, a, c: jnp.sum(a**2 * (w - c) ** 2)  # noqa: E731
    mask = pruning.prune({"w": start}, 0.6)
    keep = np.asarray(mask["w"])

    def descend(tx, params, a, c):
        def step(carry, _):
            params, state = carry
            grads = jax.grad(lambda p: quadratic(p["w"], a, c))(params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        carry = (params, tx.init(params))
        return jax.jit(lambda: jax.lax.scan(step, carry, length=50)[0][0]["w"])()

    full = descend(pruning.masked(INNER[name](), mask), {"w": start}, curvature, center)
    # One array of the sixteen kept weights: the pruned ones are not there at all.
    alone = descend(INNER[name](), {"w": start[keep]}, curvature[keep], center[keep])
    assert alone.shape == (16,)
    assert not np.allclose(alone, start[keep], atol=0.1)
    np.testing.assert_allclose(np.asarray(full)[keep], alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(full)[~keep], 0)


# -- masks that follow a schedule ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "allocation", "criterion"),
    [
        ("sgd", "uniform", "magnitude"),
        ("adamw", "global", "magnitude"),
        ("adamw", "uniform", "random"),
    ],
)
def test_a_schedule_is_followed_step_for_step(name, allocation, criterion):
    params = parameters()
    schedule = pruning.cubic(0.85, begin=5, end=40, frequency=7)
    pruner = pruning.Pruner(criterion, allocation=allocation)
    tx = pruning.optimizer(INNER[name](), pruner, schedule, key=jax.random.key(7))
    trajectory, states = run(tx, params, tx.init(params), 60)
    weights, history = trees.flatten(trajectory), trees.flatten(states.mask)

    for step in range(60):
        sparsity = max((s for at, s in schedule if at <= step), default=0.0)
        removed = [int((~np.asarray(history[path][step])).sum()) for path in PATHS]
        if allocation == "uniform":
            assert removed == [round(sparsity * n) for n in SIZES]
        else:
            assert sum(removed) == round(sparsity * sum(SIZES))
    for tree in [weights, *map(trees.flatten, moments(states.inner, params))]:
        for path in PATHS:
            gone = ~np.asarray(history[path])
            np.testing.assert_array_equal(np.asarray(tree[path])[gone], 0)
            assert np.all(gone[1:] >= gone[:-1])  # nothing comes back
    for path in PATHS:
        keep = np.asarray(history[path])[-1]
        moved = np.asarray(weights[path])[:, keep]
        assert np.all(moved[1:] != moved[:-1])


EVERY_SCHEDULE = {
    "one_shot": {"sparsity": 0.75, "step": 3},
    "cubic": {"sparsity": 0.75, "begin": 1, "end": 9, "frequency": 3},
    "constant_rate": {"sparsity": 0.75, "begin": 1, "end": 9, "frequency": 3},
    "iterative": {"rates": (1, 2, 4), "begin": 1, "frequency": 3},
    "alternating": {"sparsity": 0.75, "begin": 1, "end": 9, "sparse": 2, "dense": 2},
}
# The conv's units of each kind, then the dense layer's.
UNITS = {
    "weight": (144, 24), "kernel": (16,), "filter": (4,), "channel": (4,), "row": (None, 4),
    "column": (None, 6), "block2x2": (36, 6), "1:4": (144, 24),
}  # fmt: skip


@functools.cache
def followed(name):
    """Parameters and masks after each of 12 steps, of each granularity."""
    schedule = pruning.schedule(name, **EVERY_SCHEDULE[name])
    rng = np.random.default_rng(0)
    array = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    params, slopes = ({"conv": array(3, 3, 4, 4), "dense": array(4, 6)} for _ in range(2))
    transforms = {
        kind: pruning.optimizer(
            optax.sgd(0.1, 0.9), pruning.Pruner(granularity=kind), schedule,
            nested=name != "alternating",
        )
        for kind in UNITS
    }  # fmt: skip

    def step(carry, i):
        for kind, tx in transforms.items():
            grads = jax.tree.map(lambda slope: slope * jnp.cos(i), slopes)
            updates, state = tx.update(grads, carry[kind][1], carry[kind][0])
            carry[kind] = optax.apply_updates(carry[kind][0], updates), state
        return carry, {kind: (new, state.mask) for kind, (new, state) in carry.items()}

    start = {kind: (params, tx.init(params)) for kind, tx in transforms.items()}
    return schedule, jax.jit(lambda: jax.lax.scan(step, start, jnp.arange(12))[1])()


@pytest.mark.parametrize(("name", "granularity"), list(itertools.product(pruning.SCHEDULES, UNITS)))
def test_every_schedule_is_followed_in_units_of_every_kind(name, granularity):
    schedule, found = followed(name)
    weights, history = found[granularity]
    for step in range(12):
        sparsity = [0.0, *(s for at, s in schedule if at <= step)][-1]
        for path, number in zip(("conv", "dense"), UNITS[granularity], strict=False):
            if number is None:
                continue
            w = np.asarray(weights[path][step])
            keep = np.broadcast_to(history[path][step], w.shape)
            assert keep.mean() * number == pytest.approx(number - round(sparsity * number))
            np.testing.assert_array_equal(w[~keep], 0)


def test_the_mask_is_that_of_the_updated_weights():
    params, inner = {"w": jnp.array([[1.0, -2.0, 3.0, -4.0]])}, optax.sgd(1.0)
    tx = pruning.optimizer(inner, pruning.Pruner(), pruning.one_shot(0.5))
    grads = {"w": jnp.array([[-9.0, 0.0, 2.5, 0.0]])}  # updated: 10, -2, 0.5, -4
    updates, state = tx.update(grads, tx.init(params), params)
    np.testing.assert_array_equal(state.mask["w"], [[1, 0, 0, 1]])
    np.testing.assert_array_equal(optax.apply_updates(params, updates)["w"], [[10, 0, 0, -4]])


def test_one_shot_prunes_at_its_step_and_never_again():
    params = parameters()
    tx = pruning.optimizer(optax.adam(0.3), pruning.Pruner(), pruning.one_shot(0.5, step=3))
    _, states = run(tx, params, tx.init(params), 12)
    for path, size in zip(PATHS, SIZES, strict=True):
        history = np.asarray(trees.flatten(states.mask)[path]).reshape(12, -1)
        assert history[:3].all()
        assert history[3].sum() == size - size // 2
        np.testing.assert_array_equal(history[3:], np.broadcast_to(history[3], (9, size)))


def test_filters_go_whole():
    rng = np.random.default_rng(0)
    params = {"conv": jnp.asarray(rng.normal(size=(3, 3, 2, 4)), jnp.float32)}
    pruner = pruning.Pruner(granularity="filter")
    tx = pruning.optimizer(optax.adamw(0.1), pruner, pruning.one_shot(0.5))
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
    nonzero = np.count_nonzero(params["conv"], axis=(0, 1, 2))
    assert sorted(nonzero) == [0, 0, 18, 18]
    assert state.mask["conv"].shape == (1, 1, 1, 4)


# -- where it stands among other transformations ---------------------------------------------------


def labels(params):
    return trees.map_with_path(lambda path, _: "w" if "kernel" in path else "b", params)


WRAPPED = {
    "chain with clipping": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01)),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.01),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(0.01), 2).gradient_transformation(),
    "decay of kernels only": lambda: optax.adamw(
        0.01, mask=lambda p: trees.map_with_path(lambda path, _: "kernel" in path, p)
    ),
    # Their states hold MaskedNode where a leaf belongs to another group.
    "masked": lambda: optax.masked(
        optax.adam(0.01), lambda p: trees.map_with_path(lambda path, _: "kernel" in path, p)
    ),
    "multi_transform": lambda: optax.multi_transform(
        {"w": optax.adam(0.01), "b": optax.sgd(0.1, momentum=0.9)}, labels
    ),
    # Its moments have not the shape of the weights.
    "adafactor": lambda: optax.adafactor(0.01, min_dim_size_to_factor=4),
    # Its second moments are lists, one entry for each axis.
    "sm3": lambda: optax.sm3(0.1),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_any_optax_optimiser_can_be_wrapped(name):
    params = parameters()
    tx = pruning.optimizer(WRAPPED[name](), pruning.Pruner(), pruning.one_shot(0.5))
    trajectory, states = run(tx, params, tx.init(params), 8)
    final = trees.flatten(last(trajectory))
    for path, keep in trees.flatten(last(states).mask).items():
        keep = np.broadcast_to(keep, final[path].shape)
        assert keep.sum() == final[path].size - (final[path].size // 2 if "kernel" in path else 0)
        np.testing.assert_array_equal(np.asarray(final[path])[~keep], 0)
        assert np.all(
            np.asarray(final[path])[keep] != np.asarray(trees.flatten(params)[path])[keep]
        )


def test_the_mask_is_found_wherever_it_sits():
    params = parameters()
    mask = pruning.prune(params, 0.5)
    tx = pruning.masked(optax.adam(0.1), mask)
    for outer in [
        tx,
        optax.chain(optax.clip(1.0), optax.chain(optax.identity(), tx)),
        optax.MultiSteps(tx, 3),
        optax.inject_hyperparams(lambda rate: optax.chain(tx, optax.scale(rate)))(rate=1.0),
    ]:
        found = pruning.mask_of(outer.init(params))
        assert jax.tree.structure(found) == jax.tree.structure(mask)
        jax.tree.map(np.testing.assert_array_equal, found, mask)
    assert pruning.mask_of(optax.adam(0.1).init(params)) is None


def test_the_masks_of_several_optimisers_are_one():
    params = parameters()
    of = {
        name: pruning.optimizer(
            optax.adam(0.1), pruning.Pruner(include=(f"{name}/*",)), pruning.one_shot(share)
        )
        for name, share in (("first", 0.5), ("second", 0.8))
    }
    of["biases"] = optax.sgd(0.1)
    tx = optax.multi_transform(
        of,
        {"first": {"kernel": "first", "bias": "biases"}, "second": "second"},
    )
    state = tx.init(params)
    _, state = tx.update(jax.grad(loss)(params, 0), state, params)
    with pytest.raises(ValueError, match="params is None; the state holds masks of parts"):
        pruning.mask_of(state)
    mask = pruning.mask_of(state, params)
    assert masks.kept(params, mask) == {
        "first/kernel": 12, "first/bias": 6, "second/kernel": 6, "second/bias": 5
    }  # fmt: skip


@pytest.mark.parametrize("wrap", ["masked", "regrowing"])
def test_a_donated_state_leaves_the_mask_to_its_owner(wrap):
    params, mask = {"w": jnp.arange(1.0, 13).reshape(3, 4)}, {"w": jnp.arange(12).reshape(3, 4) > 5}
    tx = {
        "masked": lambda: pruning.masked(optax.sgd(0.1), mask),
        "regrowing": lambda: pruning.regrowing(
            optax.sgd(0.1), pruning.Pruner(), 0.5, end=2, mask=mask
        ),
    }[wrap]()
    step = jax.jit(lambda state, params: tx.update(params, state, params), donate_argnums=0)
    step(tx.init(params), params)
    assert masks.density(params, mask) == 0.5


@pytest.mark.parametrize("wrap", ["masked", "optimizer"])
def test_missing_parameters_are_an_error_that_says_so(wrap):
    params = parameters()
    tx = {
        "masked": pruning.masked(optax.sgd(0.1), masks.dense(params)),
        "optimizer": pruning.optimizer(optax.sgd(0.1), pruning.Pruner(), pruning.one_shot(0.5)),
    }[wrap]
    with pytest.raises(ValueError, match="params is None"):
        tx.update(params, tx.init(params))


def test_a_mask_that_does_not_fit_is_refused_at_init():
    params = parameters()
    mask = masks.dense(params)
    mask["first"]["kernel"] = jnp.ones((3, 3), bool)
    with pytest.raises(ValueError, match="first/kernel"):
        pruning.masked(optax.sgd(0.1), mask).init(params)


@pytest.mark.parametrize("schedule", [[], [(3, 0.1), (2, 0.2)], [(3, 0.1), (3, 0.2)]])
def test_schedules_out_of_order_are_refused(schedule):
    with pytest.raises(ValueError, match="schedule has the steps"):
        pruning.optimizer(optax.sgd(0.1), pruning.Pruner(), schedule)


@pytest.mark.parametrize(
    ("schedule", "sentence"),
    [
        ([(0, 90)], r"sparsity is 90; it must lie in \[0, 1\)"),
        ([(0, -0.5)], r"sparsity is -0\.5"),
        ([(0, float("nan"))], "sparsity is nan"),
        ([(2.5, 0.5)], r"a step of schedule is 2\.5; an integer of at least"),
        ([(-1, 0.5)], "a step of schedule is -1; an integer of at least 0"),
    ],
)
def test_what_is_no_step_or_no_sparsity_of_a_schedule_is_refused(schedule, sentence):
    with pytest.raises(ValueError, match=sentence):
        pruning.optimizer(optax.sgd(0.1), pruning.Pruner(), schedule)
