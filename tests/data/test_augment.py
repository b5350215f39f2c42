"""Shifts and flips against NumPy, outcome by outcome, with their frequencies."""

import functools
import itertools

import jax
import numpy as np
import pytest

from prunejax.data import augment

KEY = jax.random.key(7)
PAD = 2
# Distinct values above 0, so that every shift and flip of an image is a different image.
IMAGE = np.arange(1, 5 * 4 * 2 + 1, dtype=np.uint8).reshape(5, 4, 2)


# Compiled, and called with few shapes: the tests then take seconds, not a minute.
random_shift = jax.jit(augment.random_shift, static_argnums=2)
random_flip = jax.jit(augment.random_flip)
augment_images = jax.jit(augment.augment, static_argnames=("shift", "flip"))


def shifts(image, pad):
    """All shifts by NumPy: {bytes of the shifted image: (rows down, columns right)}."""
    height, width, _ = image.shape
    outcomes = {}
    for down, right in itertools.product(range(-pad, pad + 1), repeat=2):
        moved = np.zeros_like(image)
        for row, column in itertools.product(range(height), range(width)):
            if 0 <= row - down < height and 0 <= column - right < width:
                moved[row, column] = image[row - down, column - right]
        outcomes[moved.tobytes()] = (down, right)
    return outcomes


def offsets(moved, images, pad):
    """Which shift each image of a batch got; KeyError where it is none."""
    moved = np.asarray(moved)
    return [shifts(image, pad)[out.tobytes()] for image, out in zip(images, moved, strict=True)]


def copies(n):
    return np.repeat(IMAGE[None], n, axis=0)


def chi_square(counts):
    expected = np.sum(counts) / len(counts)
    return np.sum((np.asarray(counts) - expected) ** 2) / expected


def test_every_shift_occurs_equally_often():
    outcomes = shifts(IMAGE, PAD)
    assert len(outcomes) == (2 * PAD + 1) ** 2
    moved = np.asarray(random_shift(KEY, copies(5000), PAD))
    found = [outcomes[image.tobytes()] for image in moved]  # KeyError: not a shift
    counts = [found.count(offset) for offset in outcomes.values()]
    assert min(counts) > 0
    assert chi_square(counts) < 56.0  # 24 degrees of freedom, probability 0.9998


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_each_image_is_a_shift_of_itself(dtype):
    images = np.random.default_rng(0).integers(1, 256, (12, 5, 4, 2)).astype(dtype)
    moved = random_shift(KEY, images, PAD)
    assert moved.dtype == dtype
    assert moved.shape == images.shape
    assert len(set(offsets(moved, images, PAD))) > 4  # and each image has its own


def test_shift_by_more_than_the_image():
    outcomes = shifts(IMAGE, 6)
    moved = np.asarray(random_shift(KEY, copies(50), 6))
    assert all(image.tobytes() in outcomes for image in moved)


def test_shift_by_nothing_is_the_identity():
    np.testing.assert_array_equal(random_shift(KEY, copies(3), 0), copies(3))


def test_flip_mirrors_half_of_the_images():
    flipped = np.asarray(random_flip(KEY, copies(10_000)))
    mirrored = IMAGE[:, ::-1].tobytes()
    is_mirrored = [image.tobytes() == mirrored for image in flipped]
    is_same = [image.tobytes() == IMAGE.tobytes() for image in flipped]
    assert all(a != b for a, b in zip(is_mirrored, is_same, strict=True))
    assert abs(sum(is_mirrored) - 5000) < 250  # five standard deviations


def test_augment_has_all_pairs_of_shift_and_flip_equally_often():
    outcomes = {}
    for content, offset in shifts(IMAGE, 1).items():
        moved = np.frombuffer(content, np.uint8).reshape(IMAGE.shape)
        outcomes[content] = (offset, False)
        outcomes[moved[:, ::-1].tobytes()] = (offset, True)
    assert len(outcomes) == 18
    images = np.asarray(augment_images(KEY, copies(3600), shift=1, flip=True))
    found = [outcomes[image.tobytes()] for image in images]
    counts = [found.count(pair) for pair in outcomes.values()]
    assert chi_square(counts) < 45.0  # 17 degrees of freedom, probability 0.9998


def test_augment_without_either_is_the_identity():
    np.testing.assert_array_equal(augment_images(KEY, copies(3)), copies(3))


def test_flips_leave_the_shifts_as_they_are():
    shifted = np.asarray(augment_images(KEY, copies(40), shift=PAD))
    both = np.asarray(augment_images(KEY, copies(40), shift=PAD, flip=True))
    mirrored = [not np.array_equal(a, b) for a, b in zip(shifted, both, strict=True)]
    assert 0 < sum(mirrored) < 40
    for image, other, is_mirrored in zip(shifted, both, mirrored, strict=True):
        np.testing.assert_array_equal(image[:, ::-1] if is_mirrored else image, other)


def test_outcome_depends_on_the_position_not_on_the_batch():
    whole = augment_images(KEY, copies(40), shift=PAD, flip=True)
    part = augment_images(KEY, copies(3), shift=PAD, flip=True)
    np.testing.assert_array_equal(whole[:3], part)


def test_draws_do_not_depend_on_the_content():
    other = copies(40)[:, ::-1] + 100
    first = offsets(random_shift(KEY, copies(40), PAD), copies(40), PAD)
    assert first == offsets(random_shift(KEY, other, PAD), other, PAD)
    second = random_shift(jax.random.key(8), copies(40), PAD)
    assert first != offsets(second, copies(40), PAD)  # but on the key


def test_mapped_over_keys():
    function = functools.partial(augment.augment, shift=PAD, flip=True)
    keys = jax.random.split(KEY, 2)
    one_by_one = [augment_images(key, copies(40), shift=PAD, flip=True) for key in keys]
    mapped = jax.jit(jax.vmap(function, in_axes=(0, None)))(keys, copies(40))
    np.testing.assert_array_equal(mapped, np.stack(one_by_one))
    assert not np.array_equal(*one_by_one)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: augment.random_shift(KEY, IMAGE, 1), r"images.*\(5, 4, 2\).*rank 4"),
        (lambda: augment.random_flip(KEY, IMAGE), r"images.*\(5, 4, 2\).*rank 4"),
        (lambda: augment.random_shift(KEY, copies(1), -1), "pad=-1.*0 or more"),
        (lambda: augment.augment(KEY, copies(1), shift=-3), "shift=-3.*0 or more"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
