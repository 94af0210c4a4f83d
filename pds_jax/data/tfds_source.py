"""Data sets of score_sde through tensorflow_datasets' random access, without TensorFlow.

``tfds.data_source`` reads a data set that was prepared in the array_record format, image by image. FFHQ and CelebAHQ
are read from the TFRecord files of the progressive-GAN tools, as in score_sde.
"""

from __future__ import annotations

import dataclasses
import pathlib
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

from pds_jax.data.pictures import fit
from pds_jax.data.shapes import image_shape
from pds_jax.types import PdsError

# Name -> (builder, {split: tfds split}, side of the central crop or 0 for the shorter side).
NAMES: dict[str, tuple[str, dict[str, str], int]] = {
    "CIFAR10": ("cifar10", {"train": "train", "test": "test"}, 0),
    "SVHN": ("svhn_cropped", {"train": "train", "test": "test"}, 0),
    "CELEBA": ("celeb_a", {"train": "train", "test": "validation"}, 140),
    "LSUN": ("lsun", {"train": "train", "test": "validation"}, 0),
    "FFHQ": ("", {}, 0),
    "CELEBAHQ": ("", {}, 0),
}


def open_source(config: Any, split: str) -> Any:
    """Open a data set of score_sde.

    Args:
      config: with data.{dataset, image_size, num_channels}; data.category for LSUN; data.tfrecords_path for FFHQ and
        CelebAHQ; data.data_dir optionally.
      split: "train" or "test".

    Returns:
      A source, see ``datasets.Source``.

    Raises:
      PdsError: the package or the prepared data are not there.
    """
    name, shape = config.data.dataset.upper(), image_shape(config)
    builder, splits, crop = NAMES[name]
    if not builder:
        path = config.data.get("tfrecords_path", "")
        if not path:
            raise PdsError(f"data.dataset={name} is read from TFRecords: set data.tfrecords_path")
        return TFRecordSource(name, pathlib.Path(path), shape)
    if name == "LSUN":
        builder = f"lsun/{config.data.category}"
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise PdsError(f"data.dataset={name} needs tensorflow_datasets: pip install tensorflow-datasets") from error
    place = config.data.get("data_dir", None)
    try:
        rows = tfds.data_source(builder, split=splits[split], data_dir=place, download=False)
    except Exception as error:  # tfds raises many kinds, and ImportError where a preparation wants TensorFlow
        raise PdsError(
            f"tensorflow_datasets has no {builder!r} prepared for random access ({error}); prepare it once, where "
            f"there is a network, with: tfds build {builder} --file_format=array_record"
            + (f" --data_dir={place}" if place else "")
        ) from error
    smooth = "bicubic" if name == "LSUN" and 128 not in shape[:2] else "bilinear"  # as in score_sde
    return RowSource(f"{builder}-{split}", rows, shape, crop, smooth)


@dataclasses.dataclass(frozen=True)
class RowSource:
    """Images from any sequence of rows {"image": (h, w, C) uint8}, cropped to a square and resized.

    Attributes:
      name: for messages.
      rows: the sequence.
      shape: (H, W, C) to bring images to.
      crop: side of the central crop before resizing; 0 for the shorter side.
      smooth: filter of the resizing, "bilinear" or "bicubic".
    """

    name: str
    rows: Any
    shape: tuple[int, int, int]
    crop: int = 0
    smooth: str = "bilinear"

    @property
    def size(self) -> int:
        """How many images there are."""
        return len(self.rows)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Return images (B, H, W, C), float32 in [0, 1]."""
        return np.stack([self._one(int(index)) for index in indices])

    def _one(self, index: int) -> np.ndarray:
        pixels = np.asarray(self.rows[index]["image"])
        if pixels.ndim != 3 or pixels.shape[2] != self.shape[2] or pixels.dtype != np.uint8:
            wanted = f"uint8 (h, w, {self.shape[2]})"
            raise PdsError(f"{self.name}: image {index} is {pixels.dtype} {pixels.shape}, not {wanted}")
        if pixels.shape != self.shape:
            pixels = center_resize(pixels, self.shape[:2], self.crop, self.smooth)
        return pixels.astype(np.float32) / np.float32(255.0)


def center_resize(
    pixels: np.ndarray, size: int | tuple[int, int], crop: int = 0, smooth: str = "bilinear"
) -> np.ndarray:
    """Cut a central box and resize it with antialiasing.

    Args:
      pixels: (h, w, C) uint8.
      size: side, or (H, W), wanted.
      crop: side of the square that is cut first; 0 for the largest box of the aspect ratio wanted.
      smooth: filter, "bilinear" or "bicubic".

    Returns:
      (H, W, C) uint8.
    """
    if crop:
        side = min(crop, *pixels.shape[:2])
        top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
        pixels = pixels[top : top + side, left : left + side]
    return fit(pixels, (size, size) if isinstance(size, int) else size, Image.Resampling[smooth.upper()])


# --- TFRecord files --------------------------------------------------------------------------------------------


class TFRecordSource:
    """Images of TFRecord files whose records hold ``shape`` (C, H, W) and raw bytes ``data``, by index."""

    def __init__(self, name: str, path: pathlib.Path, shape: tuple[int, int, int]):
        """Find where the records begin; of every file the first image is read.

        Args:
          name: for messages.
          path: a .tfrecords file, or a folder of them, from which those of other sizes are left out.
          shape: (H, W, C) that images must have.

        Raises:
          PdsError: no such file, not TFRecords, or no file of images of this shape.
        """
        self.name, self.shape = name, shape
        paths = sorted(path.glob("*.tfrecord*")) if path.is_dir() else [path]
        firsts = {file: next(_record_places(file), None) for file in paths}
        shapes = {file: _read_record(file, *first).shape for file, first in firsts.items() if first is not None}
        if not shapes:
            raise PdsError(f"{path} holds no TFRecords")
        if shape not in shapes.values():
            found = ", ".join(map(str, sorted(set(shapes.values()))))
            raise PdsError(f"{path} holds images (H, W, C) = {found}, not {shape}; change data.image_size")
        chosen = [file for file in shapes if shapes[file] == shape]
        if len(chosen) < len(shapes):
            logging.info("%s: %d of %d TFRecord files hold images %s", path, len(chosen), len(shapes), shape)
        self._records = [(file, *place) for file in chosen for place in _record_places(file)]
        self.size = len(self._records)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Return images (B, H, W, C), float32 in [0, 1]."""
        return np.stack([self._one(int(index)) for index in indices]).astype(np.float32) / np.float32(255.0)

    def _one(self, index: int) -> np.ndarray:
        file, start, length = self._records[index]
        pixels = _read_record(file, start, length)
        if pixels.shape != self.shape:
            raise PdsError(f"{file}: the image at byte {start} is (H, W, C) = {pixels.shape}, not {self.shape}")
        return pixels


def _read_record(path: pathlib.Path, start: int, length: int) -> np.ndarray:
    """The image (H, W, C), uint8, of a record."""
    with open(path, "rb") as opened:
        opened.seek(start)
        record = opened.read(length)
    try:
        features = parse_example(record)
        channels, height, width = features["shape"]
        pixels = np.frombuffer(features["data"][0], np.uint8).reshape(channels, height, width)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise PdsError(f"{path}: record at byte {start} is no image of shape and data ({error})") from error
    return pixels.transpose(1, 2, 0)


def _record_places(path: pathlib.Path) -> Iterator[tuple[int, int]]:
    """(start, length) of each record: a file is (length u64, checksum u32, bytes, checksum u32) over and over."""
    try:
        total = path.stat().st_size
        with open(path, "rb") as file:
            place = 0
            while place < total:
                file.seek(place)
                head = file.read(12)
                length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else total
                if place + 16 + length > total:
                    raise PdsError(f"{path} is no TFRecord file, or is cut off at byte {place}")
                yield place + 12, length
                place += 16 + length
    except OSError as error:
        raise PdsError(f"cannot read {path}: {error.strerror or error}") from error


def parse_example(data: bytes) -> dict[str, list[Any]]:
    """Decode a serialised tf.train.Example: names to lists of bytes or whole numbers.

    Written from the protocol buffers' wire format: Example{1: Features{1: map<name, Feature>}}, a Feature being one
    of BytesList (1), FloatList (2, skipped) and Int64List (3).

    Args:
      data: the message.

    Raises:
      ValueError: it is no such message.
    """
    found: dict[str, list[Any]] = {}
    for features in _fields(data, 1):
        for entry in _fields(features, 1):
            name = b"".join(_fields(entry, 1)).decode()
            values: list[Any] = []
            for feature in _fields(entry, 2):
                for bytes_list in _fields(feature, 1):
                    values += _fields(bytes_list, 1)
                for int64_list in _fields(feature, 3):
                    for value in _fields(int64_list, 1):
                        values += _varints(value) if isinstance(value, bytes) else [value]
            found[name] = values
    return found


def _fields(message: Any, number: int) -> list[Any]:
    """The values of a field of a message, in order."""
    if not isinstance(message, bytes):
        raise ValueError("a number where a message should be")
    values: list[Any] = []
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        kind = tag & 7
        value: Any
        if kind == 0:
            value, place = _varint(message, place)
        elif kind in (1, 5):
            width = 8 if kind == 1 else 4
            value, place = message[place : place + width], place + width
        elif kind == 2:
            length, place = _varint(message, place)
            value, place = message[place : place + length], place + length
        else:
            raise ValueError(f"wire type {kind}")
        if place > len(message):
            raise ValueError("cut off")
        if tag >> 3 == number:
            values.append(value)
    return values


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        if place >= len(data) or shift > 63:
            raise ValueError("cut off")
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if not byte & 0x80:
            return value, place


def _varints(data: bytes) -> list[int]:
    values, place = [], 0
    while place < len(data):
        value, place = _varint(data, place)
        values.append(value)
    return values
