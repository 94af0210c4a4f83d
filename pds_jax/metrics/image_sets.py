"""Images to be judged: uint8, read by index, each with a key that identifies its content.

Nothing is converted silently: colour mode, bit depth and size of every file are checked before any long work, because
each of them changes FID without a trace.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, Protocol

import numpy as np
from PIL import Image

from pds_jax.data.image_files import SUFFIXES
from pds_jax.io.images import to_uint8
from pds_jax.io.npy import read_npy, read_npz
from pds_jax.types import PdsError

_PLAIN_MODES = {"RGB": 3, "L": 1}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER_BYTES = 1 << 16
_SEED = re.compile(r"(\d+)$")
_OF_A_RUN = re.compile(r"\d{3,}/\d{6,}\.png$")


class ImageSet(Protocol):
    """Images by index."""

    @property
    def name(self) -> str:
        """For messages and provenance."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        ...

    @property
    def seeds(self) -> Sequence[int]:
        """The seed of each image."""
        ...

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def keys(self, indices: Sequence[int]) -> list[bytes]:
        """One SHA-256 an image: equal keys mean equal images."""
        ...

    def images(self, indices: Sequence[int]) -> np.ndarray:
        """The images (b, H, W, C), uint8."""
        ...

    def take(self, positions: Sequence[int]) -> ImageSet:
        """The set of some of the images."""
        ...


def open_images(path: str | os.PathLike[str], *, convert: bool = False) -> ImageSet:
    """Open a folder, a .zip of image files, a single image file, or a .npz or .npy array of images.

    Args:
      path: where; folders are searched through, files are taken in the order of their names. Of the folder of a
        sampling run only its images are taken, not its grid.
      convert: bring gray, palette, alpha and CMYK files to RGB by Pillow's rules (alpha is dropped) instead of refusing
        them, and gray arrays too.

    Returns:
      The set; its headers are checked, its pixels are not read yet.

    Raises:
      PdsError: nothing there, or files that are broken, of mixed sizes or modes, or of more than 8 bits, by name.
    """
    place = pathlib.Path(path)
    if not place.exists():
        raise PdsError(f"{place} does not exist; give a folder, an image, a .zip, a .npz or a .npy")
    if place.suffix.lower() in (".npz", ".npy"):
        return ArrayImages(str(place), checked_pixels(_read_array(place), str(place), convert))
    if place.suffix.lower() in SUFFIXES and place.is_file():
        return FileImages.open(place.parent, convert, [place.name])
    return FileImages.open(place, convert)


# --- arrays --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ArrayImages:
    """Images in memory.

    Attributes:
      name: for messages.
      data: (n, H, W, C) uint8, see :func:`checked_pixels`.
      positions: which rows; None for all.
    """

    name: str
    data: np.ndarray
    positions: Sequence[int] | None = None

    @property
    def seeds(self) -> Sequence[int]:
        """The row of each image."""
        return range(len(self.data)) if self.positions is None else self.positions

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        height, width, channels = self.data.shape[1:]
        return height, width, channels

    def __len__(self) -> int:
        return len(self.seeds)

    def images(self, indices: Sequence[int]) -> np.ndarray:
        """The images (b, H, W, C), uint8."""
        return self.data[[self.seeds[index] for index in indices]]

    def keys(self, indices: Sequence[int]) -> list[bytes]:
        """SHA-256 of shape and pixels."""
        return [hashlib.sha256(repr(self.shape).encode() + image.tobytes()).digest() for image in self.images(indices)]

    def take(self, positions: Sequence[int]) -> ArrayImages:
        """Some of the rows."""
        return dataclasses.replace(self, positions=[self.seeds[position] for position in positions])


def _read_array(path: pathlib.Path) -> np.ndarray:
    if path.suffix.lower() == ".npy":
        return read_npy(path)
    arrays = {name: value for name, value in read_npz(path).items() if value.ndim == 4}
    if len(arrays) != 1:
        raise PdsError(f"{path} holds {len(arrays)} arrays (n, H, W, C) {sorted(arrays)}; exactly one is needed")
    return next(iter(arrays.values()))


def checked_pixels(array: np.ndarray, name: str, convert: bool = False) -> np.ndarray:
    """Bring an array of images to uint8 by the one rule, floor(clip(255 x)).

    Args:
      array: (n, H, W, C), C = 1 or 3; uint8, or float in [0, 1].
      name: for messages.
      convert: repeat one channel three times.

    Raises:
      PdsError: another shape, another data range, or no images.
    """
    if array.ndim != 4 or array.shape[-1] not in (1, 3) or 0 in array.shape[1:]:
        raise PdsError(f"{name} holds an array {array.shape}; images are (n, H, W, 3) or (n, H, W, 1)")
    if len(array) == 0:
        raise PdsError(f"{name} holds no images")
    if array.dtype != np.uint8:
        array = _quantised(array, name)
    return np.repeat(array, 3, axis=-1) if convert and array.shape[-1] == 1 else array


def _quantised(array: np.ndarray, name: str) -> np.ndarray:
    if not np.issubdtype(array.dtype, np.floating):
        raise PdsError(f"{name} holds {array.dtype}; images are uint8, or float from 0 (black) to 1 (white)")
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise PdsError(f"{name} holds NaN or infinity")
    if low < -0.01 or high > 1.01:
        raise PdsError(
            f"{name} holds values from {low:.3g} to {high:.3g}; float images go from 0 (black) to 1 (white), and "
            "values from 0 to 255 are stored as uint8"
        )
    return to_uint8(array)


# --- images that a sampler draws ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class DrawnImages:
    """Images that exist only while they are judged: one a seed, drawn when asked for.

    Attributes:
      name: for messages.
      shape: (H, W, C).
      seeds: which images.
      identity: everything that decides the images except the seed, ready for JSON.
      draw: seeds -> (b, H, W, C) float, 1.0 is white.
      batch_size: how many to draw at once; fewer are filled up, so that one program serves all.
    """

    name: str
    shape: tuple[int, int, int]
    seeds: Sequence[int]
    identity: Mapping[str, Any]
    draw: Callable[[Sequence[int]], np.ndarray]
    batch_size: int

    def __len__(self) -> int:
        return len(self.seeds)

    def images(self, indices: Sequence[int]) -> np.ndarray:
        """Draw images, (b, H, W, C) uint8."""
        seeds = [self.seeds[index] for index in indices]
        filled = seeds + seeds[-1:] * (self.batch_size - len(seeds))
        return to_uint8(np.asarray(self.draw(filled)))[: len(seeds)]

    def keys(self, indices: Sequence[int]) -> list[bytes]:
        """SHA-256 of identity and seed: known before anything is drawn."""
        base = json.dumps(self.identity, sort_keys=True, default=str)
        return [hashlib.sha256(f"{base} {self.seeds[index]}".encode()).digest() for index in indices]

    def take(self, positions: Sequence[int]) -> DrawnImages:
        """Some of the seeds."""
        return dataclasses.replace(self, seeds=[self.seeds[position] for position in positions])


# --- files ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class FileImages:
    """Image files of a folder or a zip.

    Attributes:
      name: the folder or zip.
      files: names inside it.
      shape: (H, W, C).
      convert: see :func:`open_images`.
      seeds: the number that each name ends in, or the position where names carry none.
    """

    name: str
    files: Sequence[str]
    shape: tuple[int, int, int]
    convert: bool
    seeds: Sequence[int]

    @classmethod
    def open(cls, path: pathlib.Path, convert: bool, names: Sequence[str] | None = None) -> FileImages:
        """List the files, or take the given ones, and check every header."""
        files = sorted(_names(path) if names is None else names)
        if not files:
            raise PdsError(f"{path} holds no image files ({', '.join(SUFFIXES)})")
        with _reader(path) as read:
            shape = _inspect(path, files[0], read, convert)
            for name in files[1:]:
                _check_same(path, files[0], shape, name, _inspect(path, name, read, convert))
        return cls(str(path), files, shape, convert, _seeds(files))

    def __len__(self) -> int:
        return len(self.files)

    def keys(self, indices: Sequence[int]) -> list[bytes]:
        """SHA-256 of each file's bytes and of how they are decoded."""
        mark = b"converted" if self.convert else b"plain"
        with _reader(pathlib.Path(self.name)) as read:
            return [hashlib.sha256(mark + read(self.files[index], -1)).digest() for index in indices]

    def images(self, indices: Sequence[int]) -> np.ndarray:
        """Decode (b, H, W, C), uint8."""
        with _reader(pathlib.Path(self.name)) as read:
            decoded = [self._decode(self.files[index], read(self.files[index], -1)) for index in indices]
        return np.stack(decoded)

    def take(self, positions: Sequence[int]) -> FileImages:
        """Some of the files."""
        chosen = [self.files[position] for position in positions]
        return dataclasses.replace(self, files=chosen, seeds=[self.seeds[position] for position in positions])

    def _decode(self, file: str, data: bytes) -> np.ndarray:
        with _opened(f"{self.name}/{file}", data) as image:
            pixels = np.asarray(image.convert("RGB") if self.convert else image)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if pixels.shape != self.shape or pixels.dtype != np.uint8:
            raise PdsError(f"{self.name}/{file} changed while it was being read: {pixels.shape}, was {self.shape}")
        return pixels


_Read = Callable[[str, int], bytes]


def _names(path: pathlib.Path) -> list[str]:
    if path.is_dir():
        found = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    else:
        with _archive(path) as archive:
            found = [name for name in archive.namelist() if not name.endswith("/")]
    if "manifest.json" in found:  # a sampling run, which holds a grid and other pictures beside its images
        found = [name for name in found if _OF_A_RUN.match(name)]
    visible = [name for name in found if not pathlib.PurePosixPath(name).name.startswith(".")]
    return [name for name in visible if name.lower().endswith(SUFFIXES)]


@contextlib.contextmanager
def _archive(path: pathlib.Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise PdsError(f"{path} is neither a folder, a .npz or .npy, nor a whole .zip ({error})") from error
    except OSError as error:
        raise PdsError(f"cannot read {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def _reader(path: pathlib.Path) -> Iterator[_Read]:
    """A function that reads the first bytes (all for -1) of a file inside."""

    def guarded(opener: Callable[[str], IO[bytes]]) -> _Read:
        def read(name: str, count: int) -> bytes:
            try:
                with opener(name) as file:
                    return file.read(count)
            except (OSError, KeyError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
                raise PdsError(f"cannot read {path}/{name}: {error}") from error

        return read

    if path.is_dir():
        yield guarded(lambda name: open(path / name, "rb"))
    else:
        with _archive(path) as archive:
            yield guarded(lambda name: archive.open(name))


def _inspect(path: pathlib.Path, name: str, read: _Read, convert: bool) -> tuple[int, int, int]:
    """Shape of one image from its header; says what is wrong with its mode."""
    where = f"{path}/{name}"
    try:
        mode, size, depth = _header(where, read(name, _HEADER_BYTES))
    except PdsError:  # some formats keep what matters at the end of the file
        mode, size, depth = _header(where, read(name, -1))
    if depth > 8 or mode.startswith(("I", "F")):
        raise PdsError(f"{where} has more than 8 bits a channel (mode {mode}); convert it to 8 bits first")
    if mode not in _PLAIN_MODES and not convert:
        raise PdsError(
            f"{where} has the colour mode {mode}, not RGB or gray; convert the images, or use --convert_rgb to drop "
            "alpha and let Pillow convert the rest"
        )
    return size[1], size[0], 3 if convert else _PLAIN_MODES[mode]


def _header(where: str, data: bytes) -> tuple[str, tuple[int, int], int]:
    with _opened(where, data, load=False) as image:
        depth = data[24] if data.startswith(_PNG_SIGNATURE) else 8  # Pillow cuts 16-bit RGB to 8 bits silently
        return image.mode, image.size, depth


@contextlib.contextmanager
def _opened(where: str, data: bytes, load: bool = True) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata, which does not matter here
            with Image.open(io.BytesIO(data)) as image:
                if load:
                    image.load()
                yield image
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError, zlib.error) as error:
        if isinstance(error, PdsError):
            raise
        raise PdsError(f"{where} is not a readable image ({error}); delete it or copy it again") from error


def _check_same(path: pathlib.Path, first: str, shape: tuple[int, ...], name: str, other: tuple[int, ...]) -> None:
    if other[:2] != shape[:2]:
        raise PdsError(
            f"{path}: {name} is {other[0]}x{other[1]} pixels (height x width), {first} is {shape[0]}x{shape[1]}; all "
            "images must have one size, resize them first"
        )
    if other != shape:
        raise PdsError(
            f"{path}: {name} has {other[2]} channels, {first} has {shape[2]}; do not mix gray and colour, or use "
            "--convert_rgb"
        )


def _seeds(files: Sequence[str]) -> Sequence[int]:
    """Numbers at the end of all names, else positions."""
    numbers = [_SEED.search(pathlib.PurePosixPath(file).stem) for file in files]
    seeds = [int(match[1]) for match in numbers if match]
    return seeds if len(set(seeds)) == len(files) else range(len(files))


def select(images: ImageSet, seeds: Sequence[int]) -> ImageSet:
    """The images of certain seeds, in their order.

    Args:
      images: a set.
      seeds: which.

    Returns:
      The smaller set.

    Raises:
      PdsError: a seed has no image; names the first one and what there is.
    """
    where = {seed: position for position, seed in enumerate(images.seeds)}
    missing = [seed for seed in seeds if seed not in where]
    if missing:
        raise PdsError(
            f"{images.name} has no image of seed {missing[0]} ({len(missing)} of {len(seeds)} are missing); it has "
            f"{len(where)} images, seeds {min(where)} to {max(where)}"
        )
    return images.take([where[seed] for seed in seeds])
