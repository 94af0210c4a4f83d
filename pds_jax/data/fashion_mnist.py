"""Fashion-MNIST: 70 000 pictures of clothes in ten classes (Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747, MIT licence).

Read from the four IDX files of its authors, as Debian's package dataset-fashion-mnist installs them, or through
tensorflow_datasets. Images are padded with black from 28x28 to 32x32, which halves evenly.
"""

from __future__ import annotations

import gzip
import os
import pathlib
import struct

import numpy as np

from pds_jax.data.splits import check_split
from pds_jax.types import PdsError

CLASSES = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
# Where `apt install dataset-fashion-mnist` puts it, and the variable that names another folder of the same files.
DEBIAN_FOLDER = "/usr/share/datasets/fashion-mnist"
FOLDER_VARIABLE = "FASHION_MNIST_DIR"
_PREFIX = {"train": "train", "test": "t10k"}
_PAD = 2


def fashion(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a split of Fashion-MNIST.

    Args:
      split: "train" (60 000 images) or "test" (10 000).

    Returns:
      Images (n, 32, 32, 1) uint8 and labels (n,) int32.

    Raises:
      PdsError: unknown split, a damaged file, or neither the files nor a copy of tensorflow_datasets.
    """
    folder = pathlib.Path(os.environ.get(FOLDER_VARIABLE, DEBIAN_FOLDER))
    paths = [folder / f"{_PREFIX[check_split(split)]}-{what}-ubyte.gz" for what in ("images-idx3", "labels-idx1")]
    if all(path.is_file() for path in paths):
        images, labels = (read_idx(path) for path in paths)
    else:
        images, labels = _from_tfds(split, folder)
    if images.ndim != 3 or images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise PdsError(f"Fashion-MNIST in {folder}: images {images.shape} and labels {labels.shape} do not fit")
    return np.pad(images, ((0, 0), (_PAD, _PAD), (_PAD, _PAD)))[..., None], labels.astype(np.int32)


def read_idx(path: pathlib.Path) -> np.ndarray:
    """Read a gzipped IDX file of unsigned bytes: 0, 0, 8, number of axes, each length (big-endian u32), bytes.

    Args:
      path: of the file.

    Returns:
      The array, uint8.

    Raises:
      PdsError: the file is missing, damaged or of another kind.
    """
    try:
        with gzip.open(path) as file:
            data = file.read()
        zeros, kind, axes = struct.unpack(">HBB", data[:4])
        shape = struct.unpack(f">{axes}I", data[4 : 4 + 4 * axes])
        if zeros or kind != 8:
            raise ValueError("not an IDX file of unsigned bytes")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise PdsError(f"{path} is damaged or no IDX file: {error}; install it again") from error


def _from_tfds(split: str, folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        import tensorflow_datasets as tfds

        rows = tfds.data_source("fashion_mnist", split=split, download=False)
    except Exception as error:  # tfds raises many kinds, and ImportError where a preparation wants TensorFlow
        raise PdsError(
            f"the data set fashion (Fashion-MNIST) is not in {folder} (Debian and Ubuntu: apt install "
            f"dataset-fashion-mnist; elsewhere set {FOLDER_VARIABLE} to a folder with its authors' four .gz files), "
            "and tensorflow_datasets has not prepared it (pip install tensorflow-datasets, then once, where there is a "
            f"network: tfds build fashion_mnist --file_format=array_record): {error}"
        ) from error
    images = np.stack([row["image"][..., 0] for row in rows])
    return images, np.asarray([row["label"] for row in rows])
