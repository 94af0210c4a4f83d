"""Fashion-MNIST: the IDX files, the padding, and what is said when they are not there or damaged."""

import gzip
import pathlib
import struct

import numpy as np
import pytest

from configs import fashion as fashion_config
from pds_jax.data import datasets, fashion_mnist
from pds_jax.types import PdsError


def write_idx(path, array):
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    with gzip.open(path, "wb") as file:
        file.write(head + array.astype(np.uint8).tobytes())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 7), ("t10k", 3)):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", rng.integers(0, 256, (count, 28, 28)))
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", np.arange(count))
    monkeypatch.setenv(fashion_mnist.FOLDER_VARIABLE, str(tmp_path))
    return tmp_path


def test_images_are_padded_with_black_and_keep_their_labels(folder):
    images, labels = fashion_mnist.fashion("train")
    raw = np.random.default_rng(0).integers(0, 256, (7, 28, 28))
    assert images.shape == (7, 32, 32, 1) and images.dtype == np.uint8 and labels.dtype == np.int32
    np.testing.assert_array_equal(images[:, 2:30, 2:30, 0], raw)
    assert images.sum() == raw.sum()
    np.testing.assert_array_equal(labels, np.arange(7))
    assert len(fashion_mnist.fashion("test")[0]) == 3


def test_the_configured_source_is_in_the_unit_range(folder):
    source = datasets.get_source(fashion_config.get_config(), "test")
    images = source.images(np.arange(3))
    assert source.name == "fashion-test" and images.shape == (3, 32, 32, 1) and images.dtype == np.float32
    np.testing.assert_array_equal(images, fashion_mnist.fashion("test")[0] / np.float32(255))


def test_what_is_not_there_says_both_ways_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv(fashion_mnist.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "tensorflow_datasets", None)
    with pytest.raises(PdsError, match=r"apt install dataset-fashion-mnist.*pip install tensorflow-datasets"):
        fashion_mnist.fashion("train")


def test_tensorflow_datasets_serve_where_there_are_no_files(folder, tmp_path, monkeypatch):
    expected = fashion_mnist.fashion("test")

    class Tfds:
        @staticmethod
        def data_source(name, split, download):
            assert (name, split, download) == ("fashion_mnist", "test", False)
            return [{"image": x[2:30, 2:30], "label": y} for x, y in zip(*expected, strict=True)]

    monkeypatch.setitem(__import__("sys").modules, "tensorflow_datasets", Tfds)
    monkeypatch.setenv(fashion_mnist.FOLDER_VARIABLE, str(tmp_path / "none"))
    for found, wanted in zip(fashion_mnist.fashion("test"), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"none", lambda b: gzip.compress(b"1234")])
def test_a_damaged_file_is_named(folder, damage):
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(PdsError, match="train-images.*install it again"):
        fashion_mnist.fashion("train")


def test_images_and_labels_must_fit(folder):
    write_idx(folder / "train-labels-idx1-ubyte.gz", np.arange(6))
    with pytest.raises(PdsError, match="do not fit"):
        fashion_mnist.fashion("train")
    with pytest.raises(PdsError, match="split"):
        fashion_mnist.fashion("validation")


@pytest.mark.skipif(not pathlib.Path(fashion_mnist.DEBIAN_FOLDER).is_dir(), reason="no dataset-fashion-mnist")
def test_the_real_files_and_the_moments_that_the_configuration_states():
    images, labels = fashion_mnist.fashion("train")
    model = fashion_config.get_config().model
    unit = images / np.float32(255)
    assert len(images) == 60_000 and (np.bincount(labels) == 6000).all()
    assert float(unit.mean()) == pytest.approx(model.data_mean, abs=2e-3)
    assert float(unit.std()) == pytest.approx(model.sigma_data, abs=2e-3)
