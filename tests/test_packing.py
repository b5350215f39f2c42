"""Pruned networks on disk: bit for bit the same, and small."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunejax import masks, models, packing, trees

DTYPES = ("float32", "float16", "bfloat16", "float64", "int8", "int64", "bool")


def bits(array):
    array = np.asarray(array)
    return array.shape, array.dtype, array.tobytes()


def assert_same(found, expected):
    found, expected = trees.flatten(found), trees.flatten(expected)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        assert bits(found[path]) == bits(leaf), path


def masked(params, mask):
    """`masks.apply` without JAX, which would shorten numbers of 64 bits."""
    return jax.tree.map(lambda p, keep: np.where(keep, p, np.zeros_like(p)), params, mask)


@st.composite
def networks(draw):
    """Any bits at all, NaNs of every kind among them, and a mask that broadcasts."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    params, mask = {}, {}
    for number in range(draw(st.integers(1, 3))):
        shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
        dtype = jnp.dtype(draw(st.sampled_from(DTYPES)))
        raw = rng.bytes(math.prod(shape) * dtype.itemsize)
        leaf = np.frombuffer(raw, np.uint8)
        leaf = (leaf & 1).astype(bool) if dtype.kind == "b" else leaf.view(dtype)
        small = tuple(draw(st.sampled_from([1, size])) for size in shape)
        if draw(st.booleans()):
            small = ()
        params[f"layer_{number}"] = {"kernel": leaf.reshape(shape)}
        mask[f"layer_{number}"] = {"kernel": jnp.asarray(rng.random(small) < draw(st.floats(0, 1)))}
    return params, mask


@settings(max_examples=60, deadline=None)
@given(networks())
def test_what_is_packed_comes_back_bit_for_bit(network):
    params, mask = network
    found, found_mask = packing.unpack(packing.pack(params, mask))
    assert_same(found, masked(params, mask))
    assert_same(found_mask, mask)


@settings(max_examples=20, deadline=None)
@given(networks())
def test_what_is_saved_is_loaded_bit_for_bit(tmp_path_factory, network):
    params, mask = network
    path = tmp_path_factory.mktemp("packed") / "network.safetensors"
    path.write_bytes(packing.serialized(params, mask))
    found, found_mask = packing.load(path)
    assert_same(found, masked(params, mask))
    assert_same(found_mask, mask)


def test_negative_zeros_and_the_payload_of_nans():
    payload = np.array([0x7FC00001, 0xFFC0BEEF, 0x7F800001, 0x80000000], np.uint32)
    params = {"w": payload.view(np.float32).reshape(2, 2), "b": payload.view(np.float32)}
    mask = {"w": jnp.array([[True, True], [True, False]]), "b": jnp.array(True)}
    found, _ = packing.unpack(packing.pack(params, mask))
    assert found["b"].view(np.uint32).tolist() == payload.tolist()
    # Pruned is +0, whatever stood there.
    assert found["w"].ravel().view(np.uint32).tolist() == [*payload[:3].tolist(), 0]


def test_filter_masks_are_packed_small():
    params = {"w": np.ones((3, 3, 64, 128), np.float32)}
    packed = packing.pack(params, {"w": jnp.arange(128).reshape(1, 1, 1, 128) % 2 == 0})
    assert packed["w:kept"].size == 3 * 3 * 64 * 64
    assert sum(x.nbytes for name, x in packed.items() if name != "w:kept") < 128


def pruned_resnet18(density):
    """Random weights of which the largest are kept, everywhere as many."""
    network = models.create("resnet18", num_classes=10)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)
    weights = trees.prunable(params)

    def keep(path, leaf):
        if path not in weights:
            return np.True_
        kept = round(density * leaf.size)
        return np.abs(leaf) >= np.partition(np.abs(leaf).ravel(), -kept)[-kept]

    return params, trees.map_with_path(keep, params)


def test_a_99_percent_sparse_resnet18_takes_under_3_percent_of_the_bytes(tmp_path):
    params, mask = pruned_resnet18(0.01)
    path = tmp_path / "network.safetensors"
    path.write_bytes(packing.serialized(params, mask))
    assert path.stat().st_size < 0.03 * 4 * trees.size(params)
    found, found_mask = packing.load(path)
    assert_same(found, masked(params, mask))
    assert_same(found_mask, mask)


@pytest.mark.parametrize("density", [0.5, 0.1, 0.01, 0.001])
def test_a_mask_takes_little_more_than_its_entropy(density):
    size = 2**20
    mask = {"w": np.random.default_rng(0).random(size) < density}
    packed = packing.pack({"w": np.zeros(size, np.float16)}, mask)
    entropy = -density * math.log2(density) - (1 - density) * math.log2(1 - density)
    assert entropy * size <= 8 * packed["w:mask"].nbytes <= 1.7 * entropy * size


def test_any_structure_with_a_template(tmp_path):
    params = [np.arange(3.0), {"conv/~/w": np.ones((2, 2))}]
    mask = [jnp.array([True, False, True]), {"conv/~/w": jnp.array(True)}]
    (tmp_path / "network").write_bytes(packing.serialized(params, mask))
    found, found_mask = packing.load(tmp_path / "network", template=params)
    assert jax.tree.structure(found) == jax.tree.structure(found_mask) == jax.tree.structure(params)
    assert_same(found, masked(params, mask))


# -- what does not fit -----------------------------------------------------------------------------

PARAMS = {"layer": {"kernel": np.ones((4, 6), np.float32), "bias": np.ones(6, np.float32)}}
MASK = {"layer": {"kernel": jnp.arange(24).reshape(4, 6) % 3 == 0, "bias": jnp.array(True)}}


def test_masks_of_another_structure_are_refused():
    with pytest.raises(ValueError, match="different leaves"):
        packing.serialized(PARAMS, {"layer": {"kernel": jnp.array(True)}})
    wrong = {"layer": {**MASK["layer"], "kernel": jnp.ones((6, 4), bool)}}
    with pytest.raises(ValueError, match="'layer/kernel' has shape"):
        packing.serialized(PARAMS, wrong)


def test_templates_of_another_structure_are_refused():
    with pytest.raises(ValueError, match="layer/bias"):
        packing.unpack(packing.pack(PARAMS, MASK), template={"layer": {"kernel": 0}})


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    path = tmp_path / "network.safetensors"
    path.write_bytes(packing.serialized(PARAMS, MASK))
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=str(path)):
            packing.load(path)


def test_no_damage_to_a_byte_gives_other_numbers_in_silence(tmp_path):
    path = tmp_path / "network.safetensors"
    params = {"w": np.arange(8.0, dtype=jnp.bfloat16).reshape(4, 2), "b": np.arange(2.0)}
    mask = {"w": jnp.array([[True], [False], [True], [True]]), "b": jnp.array(True)}
    whole, refused = packing.serialized(params, mask), 0
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        try:
            found, found_mask = packing.load(path)
        except ValueError:
            refused += 1
        else:
            assert_same(found, masked(params, mask))
            assert_same(found_mask, mask)
    assert refused > 0.9 * len(whole)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing_here"):
        packing.load(tmp_path / "nothing_here")


@pytest.mark.parametrize("part", [":kept", ":mask", ":shape", ":mask_shape"])
def test_damaged_entries_are_refused_by_name(part):
    packed = packing.pack(PARAMS, MASK)
    for entry in (packed[f"layer/kernel{part}"][:-1], None):
        damaged = dict(packed)
        if entry is None:
            del damaged[f"layer/kernel{part}"]
        else:
            damaged[f"layer/kernel{part}"] = entry
        with pytest.raises(ValueError, match="layer/kernel"):
            packing.unpack(damaged)


def test_packing_agrees_with_masks_apply():
    """The law in the library's own terms: what is unpacked is the masked network."""
    found, found_mask = packing.unpack(packing.pack(PARAMS, MASK))
    assert_same(found, masks.apply(PARAMS, MASK))
    assert masks.density(PARAMS, found_mask) == masks.density(PARAMS, MASK) == 1 / 3
