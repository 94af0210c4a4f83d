"""The one reader of a user's images: folders, archives, image files, .npy and .npz arrays.

Training, statistics, masks, conditions and metrics read through it, so that what one refuses the others do not take
silently. Everything is checked by the headers before the first pixel is decoded, and nothing decoded is kept.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from pds_jax.data import arrays, foreign, pictures, places
from pds_jax.data.pictures import Rule
from pds_jax.types import PdsError

_SEED = re.compile(r"(\d+)$")
_SHOW_PROGRESS = 20_000  # files
_FEW = 16  # files that are decoded one after the other


def open_images(
    path: str | os.PathLike[str],
    *,
    size: int | Sequence[int] | None = None,
    channels: int | None = None,
    convert: bool = False,
    value_range: Sequence[float] | None = None,
    limit: int | None = None,
) -> FileImages | ArrayImages:
    """Open a folder, a .zip or .tar, a single image file, or a .npz or .npy array of images.

    Args:
      path: where; folders are searched through, files are taken in the order of their names. Of the folder of a
        sampling run only its images are taken, not its grid.
      size: crop files to their central box of this aspect ratio and resize them to (H, W), or to a square.
      channels: that images must have.
      convert: bring files to ``channels`` (by default 3) instead of refusing them, see :class:`pictures.Rule`; gray
        arrays are repeated.
      value_range: (lo, hi) that floating-point arrays lie in, black and white; (0, 1) by default.
      limit: take the first so many images; the other files are not opened.

    Raises:
      PdsError: nothing there; files that are broken, of mixed sizes or channels, of several frames, of more than 8 bits
        or with transparency, by name; arrays of another shape, dtype or range.
    """
    place = pathlib.Path(path)
    rule = Rule(_size(size), _channels(channels), convert)
    value_range = arrays.checked_range(value_range)
    if limit is not None and not (isinstance(limit, int | np.integer) and limit >= 1):
        raise PdsError(f"limit={limit}: use at least one image, a whole number")
    if place.is_file() and place.suffix.lower() in (".npy", ".npz"):
        data, others = arrays.open_array(place)
        found = ArrayImages.open(str(place), data, rule, value_range, others)
        return found if limit is None else found.take(range(min(limit, len(found))))
    return FileImages.open(place, rule, value_range, limit)


def read_images(
    path: str | os.PathLike[str],
    *,
    size: int | Sequence[int] | None = None,
    channels: int | None = None,
    batch_size: int = 64,
    convert: bool = False,
    value_range: Sequence[float] | None = None,
) -> Iterator[np.ndarray]:
    """Pass once over the images at a path, in the order of their names, with constant memory.

    Args:
      path: see :func:`open_images`, as for the other arguments.
      size: (H, W) or a side.
      channels: that images must have.
      batch_size: images a batch.
      convert: bring image files to ``channels``.
      value_range: of floating-point arrays.

    Returns:
      Batches (b, H, W, C): uint8 as stored, or float32 in [0, 1].

    Raises:
      PdsError: as :func:`open_images`, at once; a file damaged behind its header, when it is reached.
    """
    found = open_images(path, size=size, channels=channels, convert=convert, value_range=value_range)
    log(found)
    return batches(found, batch_size)


def log(images: FileImages | ArrayImages) -> None:
    """Log in one line what was skipped, if anything was."""
    if images.record.get("passed_over"):
        logging.warning("%s", images.summary())


def batches(images: FileImages | ArrayImages, batch_size: int = 64) -> Iterator[np.ndarray]:
    """Batches (b, H, W, C) of a set in order: uint8 as stored, or float32 in [0, 1]."""
    for start in range(0, len(images), batch_size):
        yield images.stored(range(start, min(start + batch_size, len(images))))


def _size(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = tuple(size) if isinstance(size, Sequence | np.ndarray) else (size, size)
    if len(pair) != 2 or not all(isinstance(side, int | np.integer) and side >= 1 for side in pair):
        raise PdsError(f"image size {size}: use one number, or (height, width), of at least one pixel")
    return int(pair[0]), int(pair[1])


def _channels(channels: int | None) -> int | None:
    if channels is not None and not (isinstance(channels, int | np.integer) and channels >= 1):
        raise PdsError(f"channels={channels!r}: use 1 (gray), 3 (RGB), or what the arrays have")
    return channels


# --- arrays --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ArrayImages:
    """Images of one array, which may lie on disk.

    Attributes:
      name: for messages.
      data: (n, H, W, C) uint8, bool, or numbers in ``value_range``.
      positions: which rows; None for all.
      value_range: (black, white) of numbers that are not uint8; None for (0, 1).
      repeat: give one channel so many times.
      others: what else the file holds, for provenance.
    """

    name: str
    data: arrays.Images
    positions: Sequence[int] | None = None
    value_range: tuple[float, float] | None = None
    repeat: int = 1
    others: Sequence[str] = ()

    @classmethod
    def open(
        cls,
        name: str,
        data: arrays.Images,
        rule: Rule = Rule(),  # noqa: B008 (frozen)
        value_range: tuple[float, float] | None = None,
        others: Sequence[str] = (),
        *,
        whole: bool = True,
    ) -> ArrayImages:
        """Check an array (n, H, W, C), all of its values included.

        Args:
          name: for messages.
          data: the array.
          rule: which size and channels it must have.
          value_range: (black, white) of numbers that are not uint8.
          others: what else the file holds.
          whole: False for a part of a set, of which uint8 may be 0 and 1 only.

        Raises:
          PdsError: another shape, dtype or range.
        """
        arrays.check_images(data, name, value_range, explicit_channels=rule.channels)
        if whole:
            arrays.check_white(arrays.brightest(data), name)
        height, width, channels = data.shape[1:]
        if rule.size not in (None, (height, width)):
            raise PdsError(
                f"{name} is an array of {height}x{width} images (height x width) and is taken as it is; leave image "
                "size out, or resize it first"
            )
        repeat = rule.target if rule.convert and channels == 1 else 1
        if rule.channels not in (None, channels * repeat):
            raise PdsError(
                f"{name} is an array of {channels}-channel images, {rule.channels} are asked for"
                + ("; use --convert_images (convert=True) to repeat gray" if channels == 1 else "")
            )
        return cls(name, data, None, value_range, repeat, others)

    @property
    def seeds(self) -> Sequence[int]:
        """The row of each image."""
        return range(len(self.data)) if self.positions is None else self.positions

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        height, width, channels = self.data.shape[1:]
        return height, width, channels * self.repeat

    @property
    def record(self) -> dict[str, Any]:
        """For provenance: what was read and what was skipped."""
        facts: dict[str, Any] = {"path": self.name, "images": len(self), "dtype": str(self.data.dtype)}
        facts |= {"value_range": list(self.value_range)} if self.value_range else {}
        return facts | ({"passed_over": {"other arrays": list(self.others)}} if self.others else {})

    def summary(self) -> str:
        """What was read, in one line."""
        others = f"; skipped {len(self.others)}: other arrays ({', '.join(self.others)})" if self.others else ""
        return f"{self.name}: {len(self)} images of {self.shape}{others}"

    def __len__(self) -> int:
        return len(self.seeds)

    def stored(self, indices: Sequence[int]) -> np.ndarray:
        """Images (b, H, W, C): uint8 where the array is, else float32 in [0, 1]."""
        rows = self._rows(indices)
        return rows if rows.dtype == np.uint8 else arrays.to_unit(rows, self.value_range)

    def images(self, indices: Sequence[int]) -> np.ndarray:
        """The images (b, H, W, C), uint8, see :func:`arrays.to_bytes`."""
        return arrays.to_bytes(self._rows(indices), self.value_range)

    def _rows(self, indices: Sequence[int]) -> np.ndarray:
        rows = np.asarray(self.data[[self.seeds[index] for index in indices]])
        return np.repeat(rows, self.repeat, axis=-1) if self.repeat > 1 else rows

    def keys(self, indices: Sequence[int]) -> list[bytes]:
        """SHA-256 of shape and pixels."""
        return [hashlib.sha256(repr(self.shape).encode() + image.tobytes()).digest() for image in self.images(indices)]

    def take(self, positions: Sequence[int]) -> ArrayImages:
        """Some of the rows."""
        return dataclasses.replace(self, positions=[self.seeds[position] for position in positions])


# --- files ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class FileImages:
    """Image files, or .npy files of one image each, of a folder or an archive; decoded when they are asked for.

    Attributes:
      name: the folder or archive.
      files: names inside it.
      shape: (H, W, C).
      rule: how files become arrays.
      value_range: (black, white) of .npy files that are not uint8; None for (0, 1).
      seeds: the number that each name ends in, or the position where names carry none.
      place: what reads the files.
    """

    name: str
    files: Sequence[str]
    shape: tuple[int, int, int]
    rule: Rule
    value_range: tuple[float, float] | None
    seeds: Sequence[int]
    place: places.Place = dataclasses.field(repr=False)

    @classmethod
    def open(
        cls,
        path: pathlib.Path,
        rule: Rule,
        value_range: tuple[float, float] | None = None,
        limit: int | None = None,
    ) -> FileImages:
        """List the files and check every header."""
        place = places.open_place(path)
        listing = place.listing
        if not listing.names:
            skipped = [name for names in listing.passed_over.values() for name in names]
            known = foreign.advice(path, skipped)
            raise PdsError(known or f"{path} holds no image files; {listing.summary() or 'it is empty'}")
        names = listing.names[:limit]
        decoded = not names[0].lower().endswith(".npy")  # a listing is of image files or of arrays
        if decoded and value_range not in (None, (0.0, 255.0)):
            raise PdsError(
                f"{path} holds image files, black 0 and white 255, but the range {value_range} (data.range of the "
                "model, or --range) is that of arrays: give .npy or .npz, or leave the range out"
            )
        first, shape, bytes_first, white = names[0], (0, 0, 0), True, 0
        with pictures.quiet():
            for name in _with_progress(names, str(path)):
                other, in_bytes, brightest = _inspect(place, name, rule, value_range)
                white = max(white, brightest)
                if name is first:
                    shape, bytes_first = other, in_bytes
                elif other != shape:
                    raise _mixed(place, first, shape, name, other)
                elif in_bytes != bytes_first:
                    kinds = ("uint8", "other numbers") if in_bytes else ("other numbers than uint8", "uint8")
                    raise PdsError(
                        f"{place.where(name)} holds {kinds[0]}, {places.shown(first)} {kinds[1]}; store all images "
                        "with the same dtype"
                    )
        arrays.check_white(white, str(path))
        return cls(str(path), names, shape, rule, value_range, _seeds(names), place)

    @property
    def record(self) -> dict[str, Any]:
        """For provenance: what was read, what was skipped and why."""
        listing = self.place.listing.record()
        facts = {"path": self.name, "images": len(self), "found": listing["images"], **self.rule.record()}
        facts["passed_over"] = listing["passed_over"]
        return facts | ({"value_range": list(self.value_range)} if self.value_range else {})

    def summary(self) -> str:
        """What was read and what was skipped, in one line."""
        passed = self.place.listing.summary()
        found = len(self.place.listing.names)
        count = f"{len(self)} images" + (f" (of {found})" if found > len(self) else "")
        return f"{self.name}: {count} of {self.shape}{'; ' + passed if passed else ''}"

    def __len__(self) -> int:
        return len(self.files)

    def stored(self, indices: Sequence[int]) -> np.ndarray:
        """Images (b, H, W, C): uint8, or float32 in [0, 1] from .npy files of other numbers."""
        return self._read(indices, as_bytes=False)

    def images(self, indices: Sequence[int]) -> np.ndarray:
        """The images (b, H, W, C), uint8; from .npy files of other numbers by :func:`arrays.to_bytes`."""
        return self._read(indices, as_bytes=True)

    def _read(self, indices: Sequence[int], as_bytes: bool) -> np.ndarray:
        names = [self.files[index] for index in indices]
        one = functools.partial(self._one, as_bytes=as_bytes)
        with pictures.quiet():
            if len(names) < _FEW:
                return np.stack([one(name) for name in names])
            with concurrent.futures.ThreadPoolExecutor() as pool:  # Pillow decodes several at once
                return np.stack(list(pool.map(one, names)))

    def keys(self, indices: Sequence[int]) -> list[bytes]:
        """SHA-256 of each file's bytes and of how they are decoded."""
        mark = f"{self.rule} {self.value_range} ".encode()
        chosen = [self.files[index] for index in indices]
        marks = [mark + b"nearest " * file.lower().endswith(".npy") for file in chosen]  # the rule of arrays.to_bytes
        return [hashlib.sha256(m + self.place.read(f)).digest() for m, f in zip(marks, chosen, strict=True)]

    def take(self, positions: Sequence[int]) -> FileImages:
        """Some of the files."""
        chosen = [self.files[position] for position in positions]
        return dataclasses.replace(self, files=chosen, seeds=[self.seeds[position] for position in positions])

    def _one(self, file: str, as_bytes: bool) -> np.ndarray:
        where, data = self.place.where(file), self.place.read(file)
        if file.lower().endswith(".npy"):
            found = _array(where, data, self.rule, self.value_range)
            pixels = (found.images if as_bytes else found.stored)([0])[0]
        else:
            pixels = pictures.decode(where, data, self.rule)
        if pixels.shape != self.shape:
            raise PdsError(f"{where} is {pixels.shape} now, it was {self.shape} by its header; save it again")
        return pixels


def _inspect(
    place: places.Place, name: str, rule: Rule, value_range: tuple[float, float] | None
) -> tuple[tuple[int, int, int], bool, int]:
    """Shape of an image, whether its numbers are uint8, and its white, see :func:`arrays.brightest`."""
    if name.lower().endswith(".npy"):
        found = _array(place.where(name), place.read(name), rule, value_range)
        return found.shape, found.data.dtype == np.uint8, arrays.brightest(found.data)
    return pictures.inspect(place.where(name), functools.partial(place.read, name), rule), True, 255


def _array(where: str, data: bytes, rule: Rule, value_range: tuple[float, float] | None) -> ArrayImages:
    """The one image (H, W, C) of the bytes of a .npy file."""
    image = arrays.parse_npy(data, where)
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3:
        raise PdsError(f"{where} holds an array of shape {image.shape}; beside others it is one image (H, W, C)")
    return ArrayImages.open(where, image[None], rule, value_range, whole=False)


def _with_progress(names: Sequence[str], label: str) -> Iterator[str]:
    if len(names) < _SHOW_PROGRESS:
        yield from names
        return
    from tqdm import tqdm

    yield from tqdm(names, desc=f"checking {label}", unit="file", mininterval=1)


def _mixed(
    place: places.Place, first: str, shape: tuple[int, int, int], name: str, other: tuple[int, int, int]
) -> PdsError:
    if other[:2] != shape[:2]:
        return PdsError(
            f"{place.where(name)} is {other[0]}x{other[1]} pixels (height x width), {places.shown(first)} is "
            f"{shape[0]}x{shape[1]}; all images must have one size: resize them first, or while they are read "
            "(--resize_images in training, --image_size of make_statistics.py, size=(H, W))"
        )
    return PdsError(
        f"{place.where(name)} has {other[2]} channels, {places.shown(first)} has {shape[2]}; do not mix gray and "
        "colour, or use --convert_images (convert=True)"
    )


def _seeds(files: Sequence[str]) -> Sequence[int]:
    """Numbers at the end of all names, else positions."""
    numbers = [_SEED.search(pathlib.PurePosixPath(file).stem) for file in files]
    seeds = [int(match[1]) for match in numbers if match]
    return seeds if len(set(seeds)) == len(files) else range(len(files))
