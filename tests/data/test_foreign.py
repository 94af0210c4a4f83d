"""Data sets as they are downloaded: what is not read is named, with what to do, and that works."""

import gzip
import io
import pickle
import struct
import tarfile
import zipfile

import ml_collections
import numpy as np
import pytest
from PIL import Image

from pds_jax.data import datasets, image_files
from pds_jax.types import PdsError

ROWS = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
BATCH = pickle.dumps({b"batch_label": b"training batch 1 of 5", b"data": ROWS}, protocol=2)
IDX = b"\x00\x00\x08\x03" + struct.pack(">3I", 4, 28, 28) + bytes(4 * 28 * 28)
LMDB = bytes(16) + b"\xde\xc0\xef\xbe" + bytes(4076)


def a_file(name, data):
    def make(folder):
        (folder / name).write_bytes(data)
        return folder / name

    return make


def a_folder(name, **files):
    def make(folder):
        (folder / name).mkdir()
        for file, data in files.items():
            (folder / name / file.replace("__", ".")).write_bytes(data)
        return folder / name

    return make


def a_tar(name, **files):
    def make(folder):
        with tarfile.open(folder / name, "w:gz") as archive:
            for file, data in files.items():
                info = tarfile.TarInfo(f"cifar-10-batches-py/{file}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return folder / name

    return make


def an_npz(name, **arrays):
    def make(folder):
        np.savez(folder / name, **arrays)
        return folder / name

    return make


def a_zip(name, *files):
    def make(folder):
        with zipfile.ZipFile(folder / name, "w") as archive:
            for file in files:
                archive.writestr(file, b"\x80\x02}.")
        return folder / name

    return make


CIFAR = "is CIFAR's Python version; use data.dataset=CIFAR10 "
KNOWN = {
    "the folder of CIFAR-10": (a_folder("cifar-10-batches-py", data_batch_1=BATCH, batches__meta=b"\x80\x02}."), CIFAR),
    "its archive": (a_tar("cifar-10-python.tar.gz", data_batch_1=BATCH, test_batch=BATCH), CIFAR),
    "its archive, renamed": (a_tar("images.tar.gz", data_batch_1=BATCH), CIFAR),
    "one batch": (a_file("data_batch_1", BATCH), CIFAR),
    "one batch, renamed": (a_file("images.bin", BATCH), CIFAR),
    "the binary version": (a_file("data_batch_1.bin", bytes(3073)), "is CIFAR-10's binary version; use"),
    "the folder of LSUN": (a_folder("church_train_lmdb", data__mdb=LMDB, lock__mdb=bytes(8192)), "LMDB.*dataset=LSUN"),
    "its file": (a_file("data.mdb", LMDB), "LMDB database, as LSUN"),
    "its file, renamed": (a_file("church", LMDB), "LMDB database, as LSUN"),
    "MNIST": (a_file("train-images-idx3-ubyte", IDX), "is IDX, as MNIST.*offset=16"),
    "MNIST, packed": (a_file("train-images-idx3-ubyte.gz", gzip.compress(IDX)), "is IDX, as MNIST"),
    "MNIST, renamed": (a_file("mnist.gz", gzip.compress(IDX)), "is IDX, as MNIST"),
    "the folder of MNIST": (a_folder("raw", **{"t10k-images-idx3-ubyte": IDX}), "is IDX, as MNIST"),
    "parquet": (a_file("train-00000-of-00001.parquet", b"PAR1" + bytes(600)), "a table of Hugging Face"),
    "parquet, renamed": (a_file("table", b"PAR1" + bytes(600)), "a table of Hugging Face"),
    "a folder of parquet": (a_folder("data", a__parquet=b"PAR1"), "a table of Hugging Face"),
    "HDF5": (a_file("faces.h5", b"\x89HDF\r\n\x1a\n" + bytes(600)), "is HDF5; convert it"),
    "HDF5, renamed": (a_file("faces", b"\x89HDF\r\n\x1a\n" + bytes(600)), "is HDF5; convert it"),
    "MATLAB": (a_file("train_32x32.mat", b"MATLAB 5.0 MAT-file".ljust(600)), "a MATLAB file; use data.dataset=SVHN"),
    "TFRecords": (a_file("ffhq-r05.tfrecords", bytes(600)), "is TFRecords; use data.dataset=FFHQ .*tfrecords_path"),
    "TFRecords of tfds": (a_file("cifar10-train.tfrecord-00000-of-00001", b"x" * 600), "is TFRecords"),
    "a folder of TFRecords": (a_folder("ffhq", a__tfrecords=b"x"), "is TFRecords"),
    "ImageNet 32": (an_npz("train_data_batch_1.npz", data=ROWS, labels=np.arange(4)),
                    r"rows of numbers \(n, 3072\).*reshape\(-1, 3, 32, 32\)"),
    "ImageNet 64": (an_npz("val.npz", data=np.zeros((2, 3 * 64 * 64), np.uint8)), r"reshape\(-1, 3, 64, 64\)"),
    "a folder of ImageNet": (a_folder("imagenet32", train_data_batch_1__npz=b"x"), "is downsampled ImageNet; convert"),
    "PyTorch": (a_zip("images.pt", "images/data.pkl", "images/data/0"), "is a file of PyTorch; convert it"),
    "PyTorch, older": (a_file("x", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + bytes(600)), "is a file of PyTorch"),
    "a pickle": (a_file("faces.pkl", pickle.dumps([1])), "is a Python pickle, which is never loaded"),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_a_format_that_is_not_read_is_named_with_what_to_do(name, tmp_path):
    make, message = KNOWN[name]
    with pytest.raises(PdsError, match=message) as refusal:
        image_files.open_images(make(tmp_path))
    said = str(refusal.value)
    assert said.startswith(str(tmp_path)) and "\n" not in said and "{" not in said


def test_training_says_the_same(tmp_path):
    make, message = KNOWN["TFRecords"]
    data = {"dataset": str(make(tmp_path)), "image_size": 32, "num_channels": 3}
    with pytest.raises(PdsError, match=message):
        datasets.get_source(ml_collections.ConfigDict({"data": data}))


def test_what_is_not_known_or_damaged_is_said_as_before(tmp_path):
    (tmp_path / "notes").write_text("text" * 200)
    with pytest.raises(PdsError, match="notes is neither a folder, an image"):
        image_files.open_images(tmp_path / "notes")
    np.savez(tmp_path / "features.npz", data=np.zeros((4, 2048)))
    with pytest.raises(PdsError, match="holds 0 arrays"):
        image_files.open_images(tmp_path / "features.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PdsError, match="empty holds no image files; it is empty"):
        image_files.open_images(tmp_path / "empty")


def test_images_beside_such_files_are_read(tmp_path):
    folder = KNOWN["the folder of CIFAR-10"][0](tmp_path)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "0.png")
    assert len(image_files.open_images(folder)) == 1


@pytest.mark.parametrize("name", ["one batch", "the binary version", "ImageNet 32", "MNIST"])
def test_the_advice_makes_images_that_are_read(name, tmp_path, monkeypatch):
    """Its Python, run as it stands."""
    monkeypatch.chdir(tmp_path)
    path = KNOWN[name][0](tmp_path)
    with pytest.raises(PdsError) as refusal:
        image_files.open_images(path)
    said = str(refusal.value)
    exec(said[said.index("np.save(") :], {"np": np, "FILE": str(path)})
    found = image_files.open_images(tmp_path / "images.npy")
    assert found.shape == ((28, 28, 1) if name == "MNIST" else (32, 32, 3))
    if name in ("one batch", "ImageNet 32"):
        np.testing.assert_array_equal(found.images([1])[0, ..., 2], ROWS[1].reshape(3, 32, 32)[2])
