"""Masks of inpainting: a picture or an array of two values, white (true) where pixels are known."""

from __future__ import annotations

import os
import pathlib

import numpy as np

from pds_jax.data import arrays, pictures, places
from pds_jax.io import npy
from pds_jax.types import PdsError


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """A mask (H, W, 1), or (H, W, C) from an array, float32: 1 where known, 0 where pixels are to be found.

    Every form that loses nothing is read: 1-bit, gray of 8 or 16 bits, RGB with equal channels, a palette of black and
    white, each also with an opaque alpha channel, upright by its orientation tag; a .npy or .npz of bool, of 0 and 1,
    or of 0 and 255. An archive or a folder of one such file will do.

    Raises:
      PdsError: no such file, other values than black and white, colours, transparency, or one value all over.
    """
    place = pathlib.Path(path)
    if not place.exists():
        raise PdsError(f"--mask={place} does not exist; give a picture or .npy, white where pixels are known")
    if place.is_file() and place.suffix.lower() in (".npy", ".npz"):
        return _checked(_of_array(_array(place), str(place)), str(place))
    found = places.open_place(place)
    if len(found.listing.names) != 1:
        raise PdsError(
            f"--mask={place} holds {len(found.listing.names)} images; give one file, which serves for all images"
        )
    name = found.listing.names[0]
    where, data = found.where(name), found.read(name)
    if name.lower().endswith(".npy"):
        return _checked(_of_array(arrays.parse_npy(data, where), where), where)
    with pictures.quiet():
        pixels = pictures.decode_any(where, data)
    return _checked(_of_picture(pixels, where), where)


def describe(mask: np.ndarray) -> str:
    """What a mask says, in one line."""
    return f"{mask.mean():.1%} of the pixels are known (white, 1), the others (black, 0) are to be found"


def _array(path: pathlib.Path) -> np.ndarray:
    if path.suffix.lower() == ".npy":
        return npy.read_npy(path)
    found = npy.read_npz(path)
    if len(found) != 1:
        raise PdsError(f"--mask={path} holds the arrays {sorted(found)}; exactly one is needed")
    return next(iter(found.values()))


def _of_array(array: np.ndarray, where: str) -> np.ndarray:
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.size == 0:
        raise PdsError(f"{where} holds an array of shape {array.shape}; a mask is (H, W), (H, W, 1) or (H, W, C)")
    if array.dtype.kind not in "buif":
        raise PdsError(f"{where} holds {array.dtype}; a mask is bool, or numbers 0 and 1, or 0 and 255")
    values = array.astype(np.float32)
    return values / np.float32(255.0) if np.max(values) == 255 else values


def _of_picture(pixels: np.ndarray, where: str) -> np.ndarray:
    """Gray values in [0, 1] of (H, W, 1 to 4) pixels of any depth, black and white at the ends."""
    white = 1.0 if pixels.dtype.kind == "f" else float(np.iinfo(pixels.dtype).max)
    if pixels.shape[2] in (2, 4):
        if (pixels[..., -1] != white).any():
            raise PdsError(
                f"{where} has transparent pixels; draw the mask in black and white, white where pixels are known, and "
                "save it without transparency"
            )
        pixels = pixels[..., :-1]
    if (pixels != pixels[..., :1]).any():
        first = tuple(int(value) for value in pixels[(pixels != pixels[..., :1]).any(axis=-1)][0])
        raise PdsError(f"{where} has colours ({first}); a mask is white where pixels are known, black elsewhere")
    return (pixels[..., :1] / white).astype(np.float32)


def _checked(mask: np.ndarray, where: str) -> np.ndarray:
    values = np.unique(mask)
    if not np.isin(values, (0.0, 1.0)).all():
        some = ", ".join(f"{value:.4g}" for value in values[:4])
        raise PdsError(
            f"{where} has values that are neither black (0) nor white (1): {some}{', ...' if len(values) > 4 else ''}; "
            "threshold it first"
        )
    if len(values) == 1:
        what = "white: nothing is to be found" if values[0] else "black: nothing is known"
        raise PdsError(f"{where} is all {what}; white says which pixels are known, black which are to be found")
    return mask
