"""Archives become the records of TFDS's own builders, or an error and no data set."""

import gzip
import io
import pathlib
import struct
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp
from PIL import Image
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from prunejax import data
from prunejax.data import tfds_prepare, tfds_read

pytestmark = pytest.mark.usefixtures("no_network", "no_tensorflow")
ROOT = pathlib.Path(__file__).parents[2]
REAL_ARCHIVES = ROOT.parent / "shared" / "data"


def examples(data_dir, name, split):
    """Every example of a split in its order, through TFDS alone."""
    source = tfds.data_source(name, split=split, data_dir=data_dir, download=False)
    return [(example["image"].tobytes(), int(example["label"])) for example in source]


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_same_records_in_the_same_order_as_the_stock_builder(
    tiny_archives, tmp_path, monkeypatch, name
):
    """The stock builder runs with its three uses of TensorFlow replaced one by one."""
    tfds_prepare.prepare(name, tiny_archives.folder, tmp_path / "ours")

    from tensorflow_datasets.core.features import image_feature
    from tensorflow_datasets.image_classification import mnist

    def encode(encoder, image):  # for tf.image.encode_png
        content = io.BytesIO()
        Image.fromarray(image[..., 0]).save(content, "png")
        return content.getvalue()

    gfile = types.SimpleNamespace(GFile=gzip.open)  # for tf.io.gfile, and for extraction
    monkeypatch.setattr(mnist, "tf", types.SimpleNamespace(io=types.SimpleNamespace(gfile=gfile)))
    monkeypatch.setattr(
        tfds.download.DownloadManager,
        "download_and_extract",
        tfds.download.DownloadManager.download,
    )
    monkeypatch.setattr(image_feature._ImageEncoder, "_encode_image", encode)
    monkeypatch.setattr(mnist, "_TRAIN_EXAMPLES", 60)
    monkeypatch.setattr(mnist, "_TEST_EXAMPLES", 20)
    stock = tfds.builder_cls(name)(data_dir=tmp_path / "stock", file_format="array_record")
    stock.download_and_prepare(
        download_dir=tmp_path / "downloads",
        download_config=tfds.download.DownloadConfig(
            manual_dir=tiny_archives.folder, try_download_gcs=False
        ),
    )

    for split, size in (("train", 60), ("test", 20)):
        expected = examples(tmp_path / "stock", name, split)
        assert len(expected) == size
        assert examples(tmp_path / "ours", name, split) == expected
        assert sorted(expected) == sorted(
            (image.tobytes(), int(label))
            for image, label in zip(
                tiny_archives.images[split], tiny_archives.labels[split], strict=True
            )
        )
    ours = tfds.builder_from_directory(tmp_path / "ours" / name / "3.0.1")
    assert ours.info.full_name == stock.info.full_name
    assert repr(ours.info.features) == repr(stock.info.features)


def test_second_preparation_changes_nothing(tiny_archives, tmp_path, monkeypatch):
    folder = tfds_prepare.prepare("mnist", tiny_archives.folder, tmp_path / "data")
    assert folder == tmp_path / "data" / "mnist" / "3.0.1"
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    monkeypatch.setattr(tfds_prepare, "read_idx", lambda path: pytest.fail("read again"))
    # Not even the archives are asked for.
    assert tfds_prepare.prepare("mnist", tmp_path / "none", tmp_path / "data") == folder
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def test_nothing_but_the_set_is_left_in_the_folder(tiny_archives, tmp_path):
    tfds_prepare.prepare("mnist", tiny_archives.folder, tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mnist"]
    assert [path.name for path in (tmp_path / "data" / "mnist").iterdir()] == ["3.0.1"]


@pytest.mark.parametrize("position", [0, 5, -1])
def test_one_flipped_bit_is_found(tiny_archives, tmp_path, position):
    file = tiny_archives.folder / "t10k-images-idx3-ubyte.gz"
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)
    with pytest.raises(tfds_prepare.PrepareError) as caught:
        tfds_prepare.prepare("mnist", tiny_archives.folder, tmp_path / "data")
    message = str(caught.value)
    assert "t10k-images-idx3-ubyte.gz is damaged" in message
    assert "'mnist'" in message
    assert str(tiny_archives.folder) in message
    assert "\n" not in message
    assert not (tmp_path / "data" / "mnist").exists()


def test_tfds_checks_the_archives_as_well(tiny_archives, tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_prepare, "_check_archives", lambda stock, archives: None)
    file = tiny_archives.folder / "t10k-labels-idx1-ubyte.gz"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(NonMatchingChecksumError):
        tfds_prepare.prepare("mnist", tiny_archives.folder, tmp_path / "data")
    assert tfds_prepare.prepared_dir("mnist", tmp_path / "data") is None


def test_missing_archives_are_named(tiny_archives, tmp_path):
    (tiny_archives.folder / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(tfds_prepare.PrepareError, match=r"lacks train-labels-idx1-ubyte\.gz:"):
        tfds_prepare.prepare("mnist", tiny_archives.folder, tmp_path / "data")
    with pytest.raises(
        tfds_prepare.PrepareError, match=r"nowhere' lacks train-images.*t10k-labels"
    ):
        tfds_prepare.prepare("mnist", tmp_path / "nowhere", tmp_path / "data")
    assert not (tmp_path / "data" / "mnist").exists()


def test_a_failure_half_way_leaves_no_set_behind(tiny_archives, tmp_path, monkeypatch):
    calls = []

    def fail_at_the_seventieth(image):  # in the second split: the first one is written
        calls.append(image)
        if len(calls) == 70:
            raise RuntimeError("power cut")
        return encode_png(image)

    encode_png = tfds_prepare.encode_png
    with monkeypatch.context() as patch:
        patch.setattr(tfds_prepare, "encode_png", fail_at_the_seventieth)
        with pytest.raises(RuntimeError, match="power cut"):
            tfds_prepare.prepare("mnist", tiny_archives.folder, tmp_path / "data")
    assert tfds_read.prepared_names(tmp_path / "data") == []
    with pytest.raises(data.NotPreparedError):
        data.load("mnist", "test", data_dir=tmp_path / "data")
    tfds_prepare.prepare("mnist", tiny_archives.folder, tmp_path / "data")
    assert len(examples(tmp_path / "data", "mnist", "test")) == 20


def test_a_folder_in_the_way_is_named(tiny_archives, tmp_path):
    (tmp_path / "data" / "mnist" / "3.0.1").mkdir(parents=True)
    with pytest.raises(tfds_prepare.PrepareError, match=r"mnist/3\.0\.1 exists and is not a compl"):
        tfds_prepare.prepare("mnist", tiny_archives.folder, tmp_path / "data")


def test_another_format_in_the_way_is_named(tiny_archives, tmp_path):
    folder = tfds_prepare.prepare("mnist", tiny_archives.folder, tmp_path / "data")
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(tfds_prepare.PrepareError, match="prepared as tfrecord"):
        tfds_prepare.prepare("mnist", tiny_archives.folder, tmp_path / "data")


def test_other_sets_are_refused(tmp_path):
    with pytest.raises(tfds_prepare.PrepareError, match=r"'cifar10'.*mnist, fashion_mnist"):
        tfds_prepare.prepare("cifar10", tmp_path, tmp_path)


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_png_has_the_pixels(image):
    with Image.open(io.BytesIO(tfds_prepare.encode_png(image))) as decoded:
        assert decoded.mode == "L"
        np.testing.assert_array_equal(np.asarray(decoded), image)


@settings(max_examples=20, deadline=None)
@given(hnp.arrays(np.uint8, hnp.array_shapes(max_dims=4, max_side=5)))
def test_idx_has_the_array(tmp_path_factory, array):
    path = tmp_path_factory.mktemp("idx") / "array.gz"
    sizes = b"".join(struct.pack(">i", size) for size in array.shape)
    path.write_bytes(gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()))
    np.testing.assert_array_equal(tfds_prepare.read_idx(path), array)


@pytest.mark.parametrize("content", [b"", b"\0\0", b"\0\0\x0d\1\0\0\0\1\0\0\0\0"])
def test_idx_of_another_type_is_named(tmp_path, content):
    (tmp_path / "a.gz").write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=r"a.gz.*IDX file of unsigned bytes"):
        tfds_prepare.read_idx(tmp_path / "a.gz")


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.prepare_data", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_command_ends_with_the_sentence(tmp_path):
    result = command("--dataset=mnist", f"--archives={tmp_path}", f"--data_dir={tmp_path / 'data'}")
    assert result.returncode == 1
    assert "lacks train-images-idx3-ubyte.gz" in result.stderr
    assert "Traceback" not in result.stderr


def original(archives, split):
    """The images and labels of an original archive, read byte by byte from its definition."""
    prefix = "t10k" if split == "test" else "train"
    with gzip.open(archives / f"{prefix}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read()[16:], np.uint8).reshape(-1, 28, 28, 1)
    with gzip.open(archives / f"{prefix}-labels-idx1-ubyte.gz") as file:
        return images, np.frombuffer(file.read()[8:], np.uint8)


def ordered(images, labels):
    """Examples as rows of bytes, in an order that depends on their content alone."""
    rows = np.concatenate([images.reshape(len(images), -1), labels[:, None]], 1).astype(np.uint8)
    return np.sort(rows.view(f"V{rows.shape[1]}").ravel())


@pytest.fixture(scope="module")
def load_real(prepare_real):
    def load(name, split):
        data_dir, cache_dir = prepare_real(name)
        return data.load(name, split, data_dir=data_dir, cache_dir=cache_dir)

    return load


def test_real_fashion_mnist_is_its_archives_bit_for_bit(load_real):
    archives = REAL_ARCHIVES / "fashion_mnist"
    train, validation, test = (
        load_real("fashion_mnist", split) for split in ("train", "validation", "test")
    )
    assert (len(train), len(validation), len(test)) == (54_000, 6_000, 10_000)
    images = np.concatenate([train.images, validation.images])
    labels = np.concatenate([train.labels, validation.labels])
    np.testing.assert_array_equal(ordered(images, labels), ordered(*original(archives, "train")))
    expected = ordered(*original(archives, "test"))
    np.testing.assert_array_equal(ordered(test.images, test.labels), expected)
    assert test.class_names[9] == "Ankle boot"


@pytest.mark.exhaustive
def test_real_mnist_is_its_archives_bit_for_bit(load_real):
    archives = REAL_ARCHIVES / "mnist"
    validation, test = (load_real("mnist", split) for split in ("validation", "test"))
    assert (len(validation), len(test)) == (6_000, 10_000)
    expected = ordered(*original(archives, "test"))
    np.testing.assert_array_equal(ordered(test.images, test.labels), expected)
    train = {row.tobytes() for row in ordered(*original(archives, "train"))}
    assert all(row.tobytes() in train for row in ordered(validation.images, validation.labels))
    assert test.class_names == tuple("0123456789")


@pytest.mark.exhaustive
def test_the_real_sets_are_not_mixed_up(load_real):
    """Both have the same file names; TFDS with one download folder takes one for the other."""
    # Digits are thin strokes, clothes fill the frame; the means are those of the originals.
    assert load_real("mnist", "test").images.mean() == pytest.approx(33.79, abs=0.01)
    assert load_real("fashion_mnist", "test").images.mean() == pytest.approx(73.15, abs=0.01)


def test_command_says_that_a_set_is_already_prepared(prepare_real):
    data_dir, _ = prepare_real("fashion_mnist")
    result = command("--dataset=fashion_mnist", "--archives=unused", f"--data_dir={data_dir}")
    assert result.returncode == 0, result.stderr
    assert "fashion_mnist is already prepared in" in result.stdout
