"""Arrays of images in .npy and .npz files of any size, and what their numbers mean."""

from __future__ import annotations

import io
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pds_jax.data import foreign
from pds_jax.io import npy
from pds_jax.io.images import to_uint8
from pds_jax.types import PdsError

SLACK = 1e-4  # of the range, for rounding
_BYTE_SLACK, _HALF_SLACK = 1e-3, 0.13  # of a byte, for rounding; the second of float16
_PIECE_BYTES = 64 << 20
_DECLARE = (
    "declare another range (--config.data.range=lo,hi of pds_jax, --range=lo,hi of the scripts, value_range=(lo, hi) "
    "in Python)"
)

Range = tuple[float, float]
Images = np.ndarray | npy.Rows


def checked_range(value_range: Sequence[float] | None) -> Range | None:
    """A declared range (lo, hi), or None where nothing is declared.

    Raises:
      PdsError: not two finite numbers in rising order.
    """
    if value_range is None or (isinstance(value_range, Sequence | np.ndarray) and len(value_range) == 0):
        return None
    try:
        low, high = (float(value) for value in value_range)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise PdsError(f"range={value_range}: write two numbers (lo, hi), black and white, lo below hi")
    return low, high


def open_array(path: pathlib.Path) -> tuple[Images, list[str]]:
    """The array (n, H, W, C) of a .npy or .npz, on disk if it is large, and the other arrays of the file.

    Raises:
      PdsError: unreadable, or not exactly one array of images.
    """
    if path.suffix.lower() == ".npy":
        return npy.map_npy(path), []
    members = npy.map_npz(path)
    images = [name for name, (shape, _) in members.items() if len(shape) == 4]
    if len(images) != 1:
        known = "" if images else foreign.advice(path, [], {name: shape for name, (shape, _) in members.items()})
        if known:
            raise PdsError(known)
        there = ", ".join(f"{name} {shape}" for name, (shape, _) in members.items()) or "nothing"
        raise PdsError(f"{path} holds {len(images)} arrays (n, H, W, C), exactly one is needed; there: {there}")
    others = [f"{name} {shape}" for name, (shape, _) in members.items() if name != images[0]]
    return members[images[0]][1](), others


def parse_npy(data: bytes, where: str) -> np.ndarray:
    """The array of the bytes of a .npy file.

    Raises:
      PdsError: damaged, or pickled objects.
    """
    return npy.read_bytes(io.BytesIO(data), len(data), where)


def check_images(
    data: Images, name: str, value_range: Range | None = None, *, explicit_channels: int | None = None
) -> None:
    """Refuse an array that is not images: shape first, then every value, in pieces of bounded memory.

    Args:
      data: uint8, bool, or numbers; (n, H, W, C).
      name: for messages.
      value_range: (black, white) of numbers other than uint8; None for (0, 1) of floating point.
      explicit_channels: C where the user said it, which settles the order of the axes.

    Raises:
      PdsError: says what the array holds and what to do.
    """
    if data.ndim != 4 or 0 in data.shape[1:]:
        raise PdsError(f"{name} holds an array of shape {data.shape}; images are (n, H, W, C), gray ones (n, H, W, 1)")
    if len(data) == 0:
        raise PdsError(f"{name} holds no images")
    _, height, width, channels = data.shape
    first = (height <= 4 and channels > 4) or (width == channels and (height < width or width < height <= 4))
    if first and explicit_channels != channels:
        raise PdsError(
            f"{name} holds an array {data.shape}, which looks like (n, C, H, W); store the channels last, (n, H, W, "
            f"C), or say channels={channels}"
        )
    if data.dtype == np.bool_:
        return
    if data.dtype == np.uint8:
        if value_range not in (None, (0.0, 255.0)):
            raise PdsError(
                f"{name} holds uint8, black 0 and white 255, but the range {value_range} (data.range of the model, or "
                "--range) is that of other numbers: give floats, or leave the range out"
            )
        return
    floating = np.issubdtype(data.dtype, np.floating)
    if not floating and not (value_range and np.issubdtype(data.dtype, np.integer)):
        raise PdsError(
            f"{name} holds {data.dtype}; images are uint8 from 0 to 255, or float from 0 (black) to 1 (white); "
            f"{_DECLARE}"
        )
    _check_values(data, name, value_range or (0.0, 1.0), declared=value_range is not None)


def brightest(data: Images) -> int:
    """The largest number of uint8 images, looked for in about 64 of them; 255 for other numbers."""
    return int(data[:: max(len(data) // 64, 1)].max()) if data.dtype == np.uint8 else 255


def check_white(found: int, name: str) -> None:
    """Refuse uint8 images, whole sets of them, of 0 and 1 only.

    Args:
      found: their largest number, see :func:`brightest`.
      name: for messages.

    Raises:
      PdsError: it is 1.
    """
    if found == 1:
        raise PdsError(f"{name} holds uint8 of 0 and 1 only, and white is 255; store it as bool, or times 255")


def _check_values(data: Images, name: str, value_range: Range, declared: bool) -> None:
    lowest, highest = math.inf, -math.inf
    for start, piece in _pieces(data):
        low, high = float(piece.min()), float(piece.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = np.isfinite(piece).all(axis=(1, 2, 3))
            raise PdsError(f"{name}: image {start + int(np.argmin(finite))} holds NaN or infinity")
        lowest, highest = min(lowest, low), max(highest, high)
    slack = SLACK * (value_range[1] - value_range[0])
    if lowest < value_range[0] - slack or highest > value_range[1] + slack:
        what = (
            f"the declared range is {value_range}"
            if declared
            else ("float images go from 0 (black) to 1 (white), and values from 0 to 255 are stored as uint8")
        )
        raise PdsError(f"{name} holds values from {lowest:.6g} to {highest:.6g}; {what}; clip them, or {_DECLARE}")


def _pieces(data: Images) -> Iterator[tuple[int, np.ndarray]]:
    rows = max(_PIECE_BYTES // max(data[0].nbytes, 1), 1)
    for start in range(0, len(data), rows):
        yield start, data[start : start + rows]


def to_unit(values: np.ndarray, value_range: Range | None = None) -> np.ndarray:
    """Bring images to float32 in [0, 1]: uint8 by x / 255, others by (x − lo) / (hi − lo).

    Args:
      values: images of any shape.
      value_range: (lo, hi) of values that are not uint8; None for (0, 1).
    """
    if values.dtype == np.uint8:
        return values.astype(np.float32) / np.float32(255.0)
    if value_range in (None, (0.0, 1.0)):
        return values.astype(np.float32)
    low, high = value_range
    return ((values.astype(np.float64) - low) / (high - low)).astype(np.float32)


def to_bytes(values: np.ndarray, value_range: Range | None = None) -> np.ndarray:
    """Bring images to uint8 by floor(clip(255 x)), where 255 x just below a whole number counts as that number.

    Bytes k stored as floats, k / 255 or k / 127.5 − 1, are rounded to the precision of the floats, and come back as k:
    "just below" is by at most 1e-3, for float16 0.13.

    Args:
      values: images of any shape.
      value_range: (lo, hi) of values that are not uint8; None for (0, 1).
    """
    if values.dtype == np.uint8:
        return values
    slack = _HALF_SLACK if values.dtype == np.float16 else _BYTE_SLACK
    return to_uint8(to_unit(values, value_range) + np.float32(slack / 255.0))


def from_unit(images: Any, value_range: Range | None = None) -> Any:
    """Bring images in [0, 1] to a declared range, lo + (hi − lo) x; as they are where none is declared."""
    if value_range in (None, (0.0, 1.0)):
        return images
    low, high = value_range
    return images * np.float32(high - low) + np.float32(low)
