"""Rows as tensorflow_datasets gives them, and TFRecord files written here from the format's definition."""

import struct
import sys
import types

import ml_collections
import numpy as np
import pytest

from pds_jax.data import datasets, tfds_source
from pds_jax.types import PdsError


def config(**data):
    base = {"dataset": "CIFAR10", "image_size": 8, "num_channels": 3, "centered": False}
    return ml_collections.ConfigDict({"data": {**base, **data}})


@pytest.fixture
def fake_tfds(monkeypatch):
    """A stand-in for the package, whose data cannot be had here; records how it was asked."""
    asked = {}
    rng = np.random.default_rng(0)
    rows = [{"image": rng.integers(0, 256, (20, 12, 3), dtype=np.uint8)} for _ in range(3)]

    def data_source(name, split, data_dir, download):
        assert download is False  # which the package does by itself
        asked.update(name=name, split=split)
        return rows

    monkeypatch.setitem(sys.modules, "tensorflow_datasets", types.SimpleNamespace(data_source=data_source))
    return asked, rows


@pytest.mark.parametrize(
    "name, split, builder, tfds_split",
    [("CIFAR10", "test", "cifar10", "test"), ("SVHN", "train", "svhn_cropped", "train"),
     ("CELEBA", "test", "celeb_a", "validation"), ("LSUN", "train", "lsun/church_outdoor", "train")],
)  # fmt: skip
def test_names_of_score_sde_open_the_right_builder(fake_tfds, name, split, builder, tfds_split):
    source = datasets.get_source(config(dataset=name, category="church_outdoor"), split)
    assert fake_tfds[0] == {"name": builder, "split": tfds_split}
    images = source.images(np.array([2, 0]))
    assert images.shape == (2, 8, 8, 3) and images.dtype == np.float32 and 0 <= images.min() <= images.max() <= 1


def test_the_central_square_is_taken():
    pixels = np.zeros((20, 12, 3), np.uint8)
    pixels[4:16] = 200
    assert (tfds_source.center_resize(pixels, 4) == 200).all()
    assert tfds_source.center_resize(pixels[..., :1], 4).shape == (4, 4, 1)
    np.testing.assert_array_equal(tfds_source.center_resize(pixels[4:16], 12), pixels[4:16])


def test_unprepared_data_say_how_to_prepare_them(monkeypatch):
    def fail(*_, **__):
        raise ValueError("not found")

    monkeypatch.setitem(sys.modules, "tensorflow_datasets", types.SimpleNamespace(data_source=fail))
    with pytest.raises(PdsError, match="tfds build cifar10 --file_format=array_record$"):
        datasets.get_source(config())
    with pytest.raises(PdsError, match="tfds build cifar10 --file_format=array_record --data_dir=/data$"):
        datasets.get_source(config(data_dir="/data"))


def varint(value):
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def field(number, payload):
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def example(pixels, packed=True):
    shape = pixels.shape
    numbers = field(1, b"".join(map(varint, shape))) if packed else b"".join(varint(8) + varint(n) for n in shape)
    entries = [
        field(1, b"shape") + field(2, field(3, numbers)),
        field(1, b"data") + field(2, field(1, field(1, pixels.tobytes()))),
    ]
    return field(1, b"".join(field(1, entry) for entry in entries))


def record(payload):
    return struct.pack("<QI", len(payload), 0) + payload + struct.pack("<I", 0)


@pytest.mark.parametrize("packed", [True, False])
def test_tfrecords_are_read_by_index(tmp_path, packed):
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), dtype=np.uint8)
    for part in (0, 1):
        data = b"".join(record(example(image, packed)) for image in images[3 * part : 3 * part + 3])
        (tmp_path / f"ffhq-{part}.tfrecords").write_bytes(data)
    source = datasets.get_source(config(dataset="FFHQ", tfrecords_path=str(tmp_path)))
    assert source.size == 5
    found = source.images(np.array([4, 0]))
    np.testing.assert_allclose(found * 255, images[[4, 0]].transpose(0, 2, 3, 1), atol=1e-4)


def test_of_a_folder_of_several_sizes_the_files_of_the_wanted_one_are_read(tmp_path):
    """As the tools write FFHQ: ffhq-r04.tfrecords of 16x16, ffhq-r05.tfrecords of 32x32, ..."""
    images = {side: np.full((3, side, side), side, np.uint8) for side in (4, 8, 16)}
    for side, image in images.items():
        (tmp_path / f"ffhq-r{side:02}.tfrecords").write_bytes(record(example(image)) * 2)
    (tmp_path / "empty.tfrecords").write_bytes(b"")
    for side in images:
        source = datasets.get_source(config(dataset="FFHQ", tfrecords_path=str(tmp_path), image_size=side))
        assert source.size == 2 and (source.images(np.array([1])) * 255).round().astype(int).min() == side
    with pytest.raises(PdsError, match=r"holds images \(H, W, C\) = \(4, 4, 3\), \(8, 8, 3\), \(16, 16, 3\), not"):
        datasets.get_source(config(dataset="FFHQ", tfrecords_path=str(tmp_path), image_size=32))


def test_damaged_tfrecords_are_named(tmp_path):
    file = tmp_path / "a.tfrecords"
    whole = record(example(np.zeros((3, 8, 8), np.uint8)))
    for data, message in ((whole[:-9], "cut off"), (record(b"\xff\xff"), "no image"), (b"", "holds no TFRecords")):
        file.write_bytes(data)
        with pytest.raises(PdsError, match=message):
            tfds_source.TFRecordSource("FFHQ", file, (8, 8, 3)).images(np.array([0]))
    file.write_bytes(whole)
    with pytest.raises(PdsError, match=r"\(8, 8, 3\), not \(4, 4, 3\); change data.image_size"):
        tfds_source.TFRecordSource("FFHQ", file, (4, 4, 3))
    file.write_bytes(whole + record(example(np.zeros((3, 4, 4), np.uint8))))
    with pytest.raises(PdsError, match=r"is \(H, W, C\) = \(4, 4, 3\), not \(8, 8, 3\)"):
        tfds_source.TFRecordSource("FFHQ", file, (8, 8, 3)).images(np.array([1]))
    file.write_bytes(whole)
    with pytest.raises(PdsError, match="cannot read"):
        tfds_source.TFRecordSource("FFHQ", tmp_path / "none.tfrecords", (8, 8, 3))


def test_a_missing_path_of_tfrecords_is_asked_for():
    with pytest.raises(PdsError, match="data.tfrecords_path"):
        datasets.get_source(config(dataset="CelebAHQ"))


@pytest.mark.parametrize(
    "name, size, smooth",
    [("CELEBA", 8, "bilinear"), ("LSUN", 8, "bicubic"), ("LSUN", 128, "bilinear"), ("CIFAR10", 8, "bilinear")],
)
def test_the_filter_is_that_of_score_sde(fake_tfds, name, size, smooth):
    source = datasets.get_source(config(dataset=name, image_size=size, category="church_outdoor"), "train")
    pixels = fake_tfds[1][0]["image"]
    top = (len(pixels) - 12) // 2
    expected = tfds_source.center_resize(pixels[top : top + 12], size, smooth=smooth)
    np.testing.assert_array_equal(source.images(np.array([0]))[0], expected / np.float32(255))
    other = "bicubic" if smooth == "bilinear" else "bilinear"
    assert not np.array_equal(expected, tfds_source.center_resize(pixels[top : top + 12], size, smooth=other))
