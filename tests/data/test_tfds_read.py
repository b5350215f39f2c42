"""Prepared TFDS sets: splits, cache, and errors that come at once."""

import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from prunejax import data
from prunejax.data import tfds_prepare, tfds_read

IMAGE = tfds.features.Image(shape=(3, 2, 1))
LABEL = tfds.features.ClassLabel(names=["cat", "dog"])


def png(value, shape=(3, 2)):
    return tfds_prepare.encode_png(np.full(shape, value, np.uint8))


@pytest.fixture
def load(tiny_dir, tmp_path, no_network, no_tensorflow):
    """Loads from the tiny MNIST of 200 + 50 images, with a cache of the test's own."""

    def load_tiny(split, name="mnist", data_dir=tiny_dir, cache_dir=tmp_path / "cache", **options):
        return data.load(name, split, data_dir=data_dir, cache_dir=cache_dir, **options)

    return load_tiny


def source(tiny_dir, split):
    """The same through TFDS's own door, example by example."""
    examples = list(tfds.data_source("mnist", split=split, data_dir=tiny_dir, download=False))
    labels = np.array([example["label"] for example in examples])
    return np.stack([example["image"] for example in examples]), labels


@pytest.mark.parametrize(
    ("split", "expression"),
    [
        ("test", "test"),
        ("train", "train[:90%]"),
        ("validation", "train[90%:]"),
        ("train[:100%]", "train"),
        ("train[3:8]+test[-2:]", "train[3:8]+test[-2:]"),
    ],
)
def test_splits_are_those_of_data_source(load, tiny_dir, split, expression):
    images, labels = source(tiny_dir, expression)
    for dataset in (load(split), load(split)):  # from the files, then from the cache
        np.testing.assert_array_equal(dataset.images, images)
        np.testing.assert_array_equal(dataset.labels, labels)
        assert dataset.class_names == tuple("0123456789")
        assert (dataset.name, dataset.split) == ("mnist", split)


def test_train_and_validation_are_disjoint_and_all_of_train(load, tiny_dir):
    parts = [load("train"), load("validation")]
    assert [len(part) for part in parts] == [180, 20]
    images, _ = source(tiny_dir, "train")
    np.testing.assert_array_equal(np.concatenate([part.images for part in parts]), images)
    assert len(np.unique(images.reshape(200, -1), axis=0)) == 200  # so no image is in both


@pytest.mark.parametrize("split", ["trian", "train+validation", "train[:10", "", "train[9:5]"])
def test_unknown_split_lists_the_valid_ones(load, split):
    with pytest.raises(ValueError, match="is not a split of") as caught:
        load(split)
    message = str(caught.value)
    assert f"split={split!r}" in message
    assert "'mnist'" in message
    assert "test, train (its train[:90%]), validation (its train[90%:])" in message
    assert "'train[:1000]'" in message
    assert "\n" not in message


def test_versions_can_be_named(load):
    np.testing.assert_array_equal(load("test", name="mnist:3.0.1").images, load("test").images)
    with pytest.raises(data.NotPreparedError):
        load("test", name="mnist:1.0.0")


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_validation_split_of_its_own_is_kept(make_set, load, tmp_path, split):
    sizes = {"train": 10, "validation": 4, "test": 3}
    examples = {
        key: [{"image": png(16 * n + i), "label": i % 2} for i in range(size)]
        for n, (key, size) in enumerate(sizes.items())
    }
    make_set(tmp_path, "pets", {"image": IMAGE, "label": LABEL}, examples)
    dataset = load(split, name="pets", data_dir=tmp_path)
    start = 16 * list(sizes).index(split)
    np.testing.assert_array_equal(
        np.sort(dataset.images[:, 0, 0, 0]), np.arange(start, start + sizes[split])
    )
    np.testing.assert_array_equal(dataset.labels, dataset.images[:, 0, 0, 0] % 2)
    assert dataset.class_names == ("cat", "dog")


def test_other_keys_of_image_and_label(make_set, load, tmp_path):
    example = {"photo": png(7), "kind": 1, "image": "a text", "weight": 0.5}
    features = {"photo": IMAGE, "kind": LABEL, "image": tfds.features.Text(), "weight": np.float32}
    splits = {"test": [example]}
    make_set(tmp_path, "pets", features, splits, supervised_keys=("photo", "kind"))
    dataset = load("test", name="pets", data_dir=tmp_path)
    np.testing.assert_array_equal(dataset.images, np.full((1, 3, 2, 1), 7))
    np.testing.assert_array_equal(dataset.labels, [1])


@pytest.mark.parametrize(
    ("features", "example", "message"),
    [
        (
            {"image": tfds.features.Image(shape=(None, None, 1)), "label": LABEL},
            {"image": png(1), "label": 0},
            r"shape \(None, None, 1\), of many sizes: pass image_size=",
        ),
        (
            {"image": IMAGE, "label": np.int64},
            {"image": png(1), "label": 0},
            "not an image-classification set.*image, label",
        ),
        (
            {"text": tfds.features.Text(), "label": LABEL},
            {"text": "a", "label": 0},
            "not an image-classification set.*label, text",
        ),
        (
            {"image": IMAGE, "label": LABEL},
            {"image": png(1), "label": -1},
            "'pets', split='test': labels holds -1",
        ),
    ],
)
def test_sets_of_another_kind(make_set, load, tmp_path, features, example, message):
    make_set(tmp_path, "pets", features, {"test": [example]})
    with pytest.raises(ValueError, match=message):
        load("test", name="pets", data_dir=tmp_path)


def test_images_of_many_sizes_are_scaled_and_cropped_to_one(make_set, load, tmp_path):
    features = {"image": tfds.features.Image(shape=(None, None, 1)), "label": LABEL}
    examples = [
        {"image": png(value, shape), "label": 0}
        for value, shape in ((7, (6, 4)), (8, (3, 9)), (9, (2, 2)))
    ]
    make_set(tmp_path, "pets", features, {"test": examples})
    for size in (3, 5):  # in this order from one cache folder
        images = load("test", name="pets", data_dir=tmp_path, image_size=size).images
        assert images.shape == (3, size, size, 1)
        assert sorted(images[:, 0, 0, 0]) == [7, 8, 9]
        np.testing.assert_array_equal(images, np.broadcast_to(images[:, :1, :1], images.shape))
    with pytest.raises(ValueError, match="image_size is 0"):
        load("test", name="pets", data_dir=tmp_path, image_size=0)


def test_the_middle_is_kept_and_the_shorter_side_scaled():
    ramp = np.broadcast_to(8 * np.arange(24, dtype=np.uint8)[:, None], (12, 24, 3))
    np.testing.assert_array_equal(tfds_read.fitted(ramp, 12), ramp[:, 6:18])
    halved = tfds_read.fitted(ramp, 6)
    assert halved.shape == (6, 6, 3)
    # Each new pixel is the mean of a symmetric window around two old ones.
    np.testing.assert_array_equal(halved[3, 1:-1, 0], 8 * (6 + 2 * np.arange(1, 5)) + 4)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_unprepared_set_names_the_command(tmp_path, load, name):
    with pytest.raises(FileNotFoundError) as caught:
        load("train", name=name, data_dir=tmp_path)
    assert isinstance(caught.value, data.NotPreparedError)
    assert str(caught.value) == (
        f"name='{name}' is not prepared in data_dir='{tmp_path}': run "
        f"`python -m experiments.prepare_data --dataset={name} --archives=DIR "
        f"--data_dir={tmp_path}`."
    )


@pytest.mark.parametrize("name", ["cifar10", "imagenet_resized/32x32"])
def test_unprepared_set_of_another_builder_names_the_command_of_tfds(tmp_path, load, name):
    with pytest.raises(data.NotPreparedError, match=f"`tfds build {name} --file_format=array_rec"):
        load("train", name=name, data_dir=tmp_path)


def test_folder_of_the_environment_is_searched(tiny_dir, tmp_path, monkeypatch, load):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tiny_dir))
    assert len(load("test", data_dir=None)) == 50
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises(data.NotPreparedError, match="elsewhere"):
        load("test", data_dir=None)
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tfds_read.default_data_dir() == tmp_path / "tensorflow_datasets"


def test_unfinished_preparation_does_not_count(tiny_dir, tmp_path, load):
    """What TFDS leaves behind when its process is killed."""
    complete = tiny_dir / "mnist" / "3.0.1"
    shutil.copytree(complete, tmp_path / "mnist" / "incomplete.ABC123_3.0.1")
    assert tfds_read.prepared_names(tmp_path) == []
    with pytest.raises(data.NotPreparedError):
        load("test", data_dir=tmp_path)
    assert tfds_read.prepared_names(tiny_dir) == ["mnist"]


def test_other_file_formats_are_refused(tiny_dir, tmp_path, load):
    shutil.copytree(tiny_dir / "mnist", tmp_path / "mnist")
    info = tmp_path / "mnist" / "3.0.1" / "dataset_info.json"
    content = json.loads(info.read_text())
    info.write_text(json.dumps({**content, "fileFormat": "tfrecord"}))
    with pytest.raises(
        ValueError, match=r"'mnist' is prepared as tfrecord.*file_format='array_rec"
    ):
        load("test", data_dir=tmp_path)


def test_the_cache_is_read_the_second_time(load, monkeypatch):
    first = load("test")
    monkeypatch.setattr(tfds_read, "_read", lambda *args: pytest.fail("read again"))
    np.testing.assert_array_equal(load("test").images, first.images)


def test_progress_is_that_of_reading_the_files(load, monkeypatch):
    monkeypatch.setattr(tfds_read, "_CHUNK", 20)
    calls = []
    for _ in range(2):  # the second time there is nothing to read
        load("test", progress=lambda *call: calls.append(call))
        assert calls == [(0, 50), (20, 50), (40, 50), (50, 50)]


def test_a_truncated_cache_is_rebuilt(load, tmp_path, recwarn):
    first = load("test")
    (path,) = (tmp_path / "cache").iterdir()
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b""):
        path.write_bytes(content)
        again = load("test")
        np.testing.assert_array_equal(again.images, first.images)
        np.testing.assert_array_equal(again.labels, first.labels)
        assert path.read_bytes() == whole
    assert not [str(each.message) for each in recwarn if "cache_dir" in str(each.message)]


def test_splits_and_preparations_do_not_share_a_cache_file(load, make_set, tmp_path):
    features = {"image": IMAGE, "label": LABEL}
    for folder, size in (("a", 2), ("b", 3)):
        examples = [{"image": png(size), "label": 0}] * size
        make_set(tmp_path / folder, "pets", features, {"test": examples})
    assert len(load("test", name="pets", data_dir=tmp_path / "a")) == 2
    assert len(load("test", name="pets", data_dir=tmp_path / "b")) == 3
    # These two differ only in characters that a file name leaves out.
    assert len(load("train[:10]")) == 10
    assert len(load("train[10:]")) == 190


def test_a_cache_that_cannot_be_written_is_only_warned_of(load, tmp_path, tiny_dir):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match=r"cache_dir=.*cannot be written"):
        dataset = load("test", cache_dir=tmp_path / "file")
    np.testing.assert_array_equal(dataset.images, source(tiny_dir, "test")[0])
