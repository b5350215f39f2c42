"""Checkpoints come back bit for bit, or say what is wrong with them."""

import functools
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import masks, pruning
from prunejax.training import checkpoints
from prunejax.training.checkpoints import CheckpointError, Position, Store

SPECIAL = [-0.0, 1e-45, np.inf, -np.inf, np.nan, 3.4e38, 1 / 3, -1e-20]


def variables(seed=0):
    """Every kind of leaf, with all the values that a careless text format would lose."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    kernel = normal(3, 3, 2, 4)
    return jax.tree.map(
        jnp.asarray,
        {
            "params": {
                "Conv_0": {"kernel": kernel, "bias": np.float32(SPECIAL)},
                "Dense_0": {"kernel": normal(16, 5)},
                "BatchNorm_0": {"scale": normal(4)},
            },
            "batch_stats": {"BatchNorm_0": {"mean": normal(4), "var": normal(4) ** 2}},
        },
    )


def assert_bits_equal(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert a.tobytes() == b.tobytes()


def files(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


def damage(directory, how):
    for path in files(directory):
        if how == "truncated":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif how == "deleted":
            path.unlink()


# -- finished networks -----------------------------------------------------------------------------

PRUNERS = {
    "dense": lambda params: masks.dense(params),
    "weights": lambda params: pruning.prune(params, 0.7, pruning.Pruner(allocation="global")),
    "filters": lambda params: pruning.prune(params, 0.5, pruning.Pruner(granularity="filter")),
    "a layer gone": lambda params: {
        **masks.dense(params),
        "Dense_0": {"kernel": jnp.zeros((16, 5), bool)},
    },
}


@pytest.mark.parametrize("kind", PRUNERS)
@pytest.mark.parametrize("collections", ["with statistics", "without"])
def test_networks_come_back_bit_for_bit(tmp_path, kind, collections):
    network = variables()
    if collections == "without":
        del network["batch_stats"]
    mask = PRUNERS[kind](network["params"])
    network["params"] = masks.apply(network["params"], mask)
    checkpoints.save_network(tmp_path / "network", network, mask)

    template = jax.eval_shape(lambda: network)
    loaded, loaded_mask = checkpoints.load_network(tmp_path / "network", template)
    assert_bits_equal(loaded, network)
    assert_bits_equal(loaded_mask, mask)
    # A template of arrays is as good, and its numbers play no part.
    again, _ = checkpoints.load_network(tmp_path / "network", jax.tree.map(jnp.zeros_like, network))
    assert_bits_equal(again, network)


def test_a_pruned_network_takes_the_space_of_what_is_kept(tmp_path):
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(1000, 1000)), jnp.float32)}
    sizes = {}
    for sparsity in (0.0, 0.95, 0.99):
        keep = pruning.prune(params, sparsity) if sparsity else masks.dense(params)
        folder = tmp_path / str(sparsity)
        checkpoints.save_network(folder, {"params": masks.apply(params, keep)}, keep)
        sizes[sparsity] = sum(path.stat().st_size for path in files(folder))
    assert sizes[0.0] >= 0.8 * 4e6  # random floats hardly compress
    assert sizes[0.95] < 0.09 * sizes[0.0]  # 5 % of the floats, and a bit a weight
    assert sizes[0.99] < 0.03 * sizes[0.0]  # the bits compress: the entropy is 0.08 of a bit


def test_saving_again_replaces_what_was_there(tmp_path):
    for seed in (0, 1):
        network = variables(seed)
        checkpoints.save_network(tmp_path, network, masks.dense(network["params"]))
    assert_bits_equal(checkpoints.load_network(tmp_path, network)[0], network)


def test_a_missing_network_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=f"No network at {tmp_path / 'none'}"):
        checkpoints.load_network(tmp_path / "none", variables())


@pytest.mark.parametrize("how", ["truncated", "deleted"])
def test_a_damaged_network_is_named(tmp_path, how):
    network = variables()
    checkpoints.save_network(tmp_path / "network", network, masks.dense(network["params"]))
    damage(tmp_path / "network", how)
    with pytest.raises(CheckpointError, match=f"Network {tmp_path / 'network'} is damaged.*Remove"):
        checkpoints.load_network(tmp_path / "network", network)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "network"
    network = variables()
    mask = pruning.prune(network["params"], 0.5)
    checkpoints.save_network(directory, network, mask)
    return directory


# Orbax leaves a task behind when a read fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_each_file_matters_or_changes_nothing(saved, tmp_path):
    """No damage to a single file gives other numbers in silence."""
    network = variables()
    expected = checkpoints.load_network(saved, network)
    for number, path in enumerate(files(saved)):
        copy = tmp_path / str(number)
        shutil.copytree(saved, copy)
        target = copy / path.relative_to(saved)
        target.write_bytes(target.read_bytes()[: target.stat().st_size // 2])
        try:
            loaded = checkpoints.load_network(copy, network)
        except CheckpointError:
            continue
        assert_bits_equal(loaded, expected)


@pytest.mark.parametrize("change", ["wider", "more layers", "more statistics"])
def test_another_network_than_the_template_is_named(saved, change):
    template = variables()
    if change == "wider":
        template["params"]["Dense_0"]["kernel"] = jnp.zeros((16, 6))
    elif change == "more layers":
        template["params"]["Dense_1"] = {"kernel": jnp.zeros((5, 5))}
    else:
        template["batch_stats"]["BatchNorm_1"] = {"mean": jnp.zeros(3)}
    with pytest.raises(CheckpointError, match=f"{saved} is damaged, or is not the network"):
        checkpoints.load_network(saved, template)


@pytest.mark.parametrize("change", ["transposed kernel", "longer statistics"])
def test_another_shape_is_named_even_where_the_numbers_would_fit_in(tmp_path, change):
    network, template = variables(), variables()
    checkpoints.save_network(tmp_path / "network", network, masks.dense(network["params"]))
    if change == "transposed kernel":
        template["params"]["Dense_0"]["kernel"] = jnp.zeros((5, 16))
    else:
        template["batch_stats"]["BatchNorm_0"]["mean"] = jnp.zeros(5)
    with pytest.raises(CheckpointError, match="is not the network"):
        checkpoints.load_network(tmp_path / "network", template)


# -- runs under way --------------------------------------------------------------------------------


@functools.cache
def tree(seed):
    rng = np.random.default_rng(seed)
    return {
        "state": (jnp.int32(seed), [jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)]),
        "best": {"mask": jnp.asarray(rng.random((3, 2)) < 0.5), "odd": jnp.float32(SPECIAL)},
    }


def position(number):
    return Position(phase=number // 2, epoch=number + 1, best_value=0.1 * number)


def filled(directory, numbers=(1, 2, 3)):
    store = Store(directory)
    for number in numbers:
        store.save(number, position(number), tree(number))
    store.close()
    return directory


@pytest.mark.parametrize("template", ["arrays", "shapes"])
def test_the_newest_checkpoint_comes_back_bit_for_bit(tmp_path, template):
    store = Store(filled(tmp_path))
    latest = store.latest()
    assert latest == Position(1, 4, 0.1 * 3, checkpoint=3)
    like = {"arrays": lambda: tree(0), "shapes": lambda: jax.eval_shape(lambda: tree(0))}[
        template
    ]()
    assert_bits_equal(store.restore(latest, like), tree(3))


def test_an_empty_store_has_no_latest(tmp_path):
    assert Store(tmp_path / "new").latest() is None
    assert (tmp_path / "new").is_dir()


def test_a_network_that_may_not_be_chosen_yet_has_the_value_minus_infinity(tmp_path):
    store = Store(tmp_path)
    store.save(1, Position(0, 1, -math.inf), tree(1))
    assert store.latest() == Position(0, 1, -math.inf, checkpoint=1)


def test_values_of_numpy_are_values_too(tmp_path):
    store = Store(tmp_path)
    store.save(1, Position(0, 1, np.float32(0.25)), tree(1))
    assert store.latest().best_value == 0.25


def test_two_checkpoints_are_kept(tmp_path):
    filled(tmp_path, range(1, 6))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["4", "5"]


@pytest.mark.parametrize("how", ["truncated", "deleted"])
def test_a_damaged_newest_checkpoint_is_named(tmp_path, how):
    filled(tmp_path)
    damage(tmp_path / "3", how)
    with pytest.raises(CheckpointError, match=f"{tmp_path / '3'} is damaged.*--fall_back"):
        Store(tmp_path).latest()
    assert (tmp_path / "3").is_dir()  # nothing is removed unasked


@pytest.mark.parametrize("how", ["truncated", "deleted"])
def test_falling_back_drops_to_the_one_before(tmp_path, how):
    filled(tmp_path)
    damage(tmp_path / "3", how)
    store = Store(tmp_path, fall_back=True)
    latest = store.latest()
    assert latest == Position(1, 3, 0.1 * 2, checkpoint=2)
    assert_bits_equal(store.restore(latest, tree(0)), tree(2))
    # The run goes on: number 3 can be written anew, and is the newest again.
    store.save(3, position(3), tree(30))
    assert store.latest().checkpoint == 3
    assert_bits_equal(store.restore(store.latest(), tree(0)), tree(30))


def test_falling_back_from_all_of_them_starts_anew(tmp_path):
    filled(tmp_path, (1, 2))
    for number in (1, 2):
        damage(tmp_path / str(number), "truncated")
    assert Store(tmp_path, fall_back=True).latest() is None


@pytest.mark.parametrize("lost", [(3,), (2, 3)])
def test_a_missing_newest_checkpoint_is_named(tmp_path, lost):
    filled(tmp_path)
    for number in lost:
        shutil.rmtree(tmp_path / str(number))
    for _ in range(2):  # nothing is forgotten by asking
        with pytest.raises(CheckpointError, match=f"{tmp_path / '3'} is missing.*--fall_back"):
            Store(tmp_path).latest()
    store = Store(tmp_path, fall_back=True)
    latest = store.latest()
    if lost == (3,):
        assert latest == Position(1, 3, 0.1 * 2, checkpoint=2)
        assert_bits_equal(store.restore(latest, tree(0)), tree(2))
    else:
        assert latest is None
    store.close()
    # Asked for once; the run may be stopped before its next checkpoint.
    assert Store(tmp_path).latest() == latest


@pytest.mark.parametrize("number", ["2", None])
def test_killed_between_a_save_and_its_number_the_newest_is_found(tmp_path, number):
    filled(tmp_path)
    assert (tmp_path / checkpoints.NEWEST).read_text() == "3\n"
    (tmp_path / checkpoints.NEWEST).unlink()
    if number:
        (tmp_path / checkpoints.NEWEST).write_text(number)
    assert Store(tmp_path).latest().checkpoint == 3
    shutil.rmtree(tmp_path / "3")  # its number has been made good meanwhile
    with pytest.raises(CheckpointError, match="is missing"):
        Store(tmp_path).latest()


def test_a_damaged_number_of_the_newest_is_named(tmp_path):
    filled(tmp_path)
    (tmp_path / checkpoints.NEWEST).write_text("")
    with pytest.raises(CheckpointError, match=f"{tmp_path / checkpoints.NEWEST}.*Remove it"):
        Store(tmp_path).latest()
    assert Store(tmp_path, fall_back=True).latest().checkpoint == 3
    assert Store(tmp_path).latest().checkpoint == 3


def test_only_the_first_process_removes_and_writes(tmp_path, monkeypatch):
    filled(tmp_path)
    damage(tmp_path / "3", "truncated")
    before = {path: path.read_bytes() for path in files(tmp_path)}
    store = Store(tmp_path, fall_back=True)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert store.latest().checkpoint == 2
    assert {path: path.read_bytes() for path in files(tmp_path)} == before


def test_falling_back_touches_nothing_where_nothing_is_damaged(tmp_path):
    store = Store(filled(tmp_path), fall_back=True)
    assert store.latest().checkpoint == 3
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["2", "3"]


def test_a_save_that_was_cut_short_is_ignored(tmp_path):
    filled(tmp_path, (1, 2))
    half = tmp_path / "3.orbax-checkpoint-tmp-1234567890"  # the name under which Orbax writes
    shutil.copytree(tmp_path / "2", half)
    damage(half, "truncated")
    store = Store(tmp_path)
    assert store.latest().checkpoint == 2
    assert_bits_equal(store.restore(store.latest(), tree(0)), tree(2))
    store.save(3, position(3), tree(3))
    assert store.latest().checkpoint == 3


def test_a_checkpoint_of_another_run_is_named(tmp_path):
    store = Store(filled(tmp_path))
    other = {**tree(0), "best": {"mask": jnp.ones((3, 2), bool)}}
    with pytest.raises(CheckpointError, match=f"{tmp_path / '3'} is damaged or of another run"):
        store.restore(store.latest(), other)
