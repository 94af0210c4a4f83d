"""Images on disk: the one uint8 rule, one file a seed, grids and strips."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from pds_jax.io.files import atomic_write
from pds_jax.io.npy import read_npy
from pds_jax.types import Array, PdsError


def to_uint8(images: np.ndarray) -> np.ndarray:
    """The one rule from float images to bytes: floor(clip(255 x, 0, 255)), as score_sde does.

    Args:
      images: (..., H, W, C) float, 1.0 is white.

    Returns:
      uint8 of the same shape.

    Raises:
      PdsError: a pixel is not finite.
    """
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images
    if not np.isfinite(images).all():
        raise PdsError("an image holds NaN or infinity and cannot be written")
    return np.clip(images * 255.0, 0.0, 255.0).astype(np.uint8)


def to_uint8_on_device(images: Array) -> tuple[Array, Array]:
    """:func:`to_uint8` where the images are, so that a quarter of the bytes cross to the host.

    Args:
      images: (B, H, W, C) float32, 1.0 is white.

    Returns:
      uint8 of the same shape, equal to that of :func:`to_uint8`; and (B,) bool, whether all pixels are finite.
    """
    finite = jnp.all(jnp.isfinite(images), axis=(1, 2, 3))
    return jnp.clip(images * 255.0, 0.0, 255.0).astype(jnp.uint8), finite


def png_bytes(image: np.ndarray) -> bytes:
    """Encode one image.

    Args:
      image: (H, W, C) uint8 or float in [0, 1]; C is 1 (gray), 3 (RGB) or 4 (RGBA).

    Returns:
      The PNG file's bytes.

    Raises:
      PdsError: another shape, or a pixel that is not finite.
    """
    pixels = to_uint8(image)
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3, 4):
        raise PdsError(f"a PNG needs (H, W, 1), (H, W, 3) or (H, W, 4), got {pixels.shape}; save as npz instead")
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def save_png(path: str | os.PathLike[str], image: np.ndarray) -> str:
    """Write one image as PNG, atomically.

    Args:
      path: where.
      image: (H, W, C) uint8 or float in [0, 1].

    Returns:
      The SHA-256 of the file.

    Raises:
      PdsError: another shape, a pixel that is not finite, or a file that cannot be written.
    """
    data = png_bytes(image)
    atomic_write(path, lambda file: file.write(data))
    return hashlib.sha256(data).hexdigest()


def load_png(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a PNG written by :func:`save_png`.

    Args:
      path: of the file.

    Returns:
      (H, W, C) uint8.

    Raises:
      PdsError: the file is missing or not an image.
    """
    try:
        with Image.open(pathlib.Path(path)) as image:
            pixels = np.asarray(image)
    except (OSError, SyntaxError) as error:
        raise PdsError(f"{path} is not a readable image: {error}") from error
    return pixels[..., None] if pixels.ndim == 2 else pixels


def save_gif(
    path: str | os.PathLike[str], frames: Sequence[np.ndarray], milliseconds: int = 80, hold: int = 12
) -> None:
    """Write an animated GIF that repeats, atomically.

    Args:
      path: where.
      frames: pictures (H, W, 1 or 3) of one size, uint8 or float in [0, 1].
      milliseconds: shown each.
      hold: how many times longer the last one is shown.

    Raises:
      PdsError: no frame, or frames of different sizes.
    """
    shapes = {np.shape(frame) for frame in frames}
    if len(shapes) != 1:
        raise PdsError(f"an animation needs frames of one size, got {sorted(shapes)}")
    pixels = [to_uint8(frame) for frame in frames]
    pictures = [Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in pixels]
    durations = [milliseconds] * (len(pictures) - 1) + [milliseconds * hold]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    data = buffer.getvalue()
    atomic_write(path, lambda file: file.write(data))


def seed_path(folder: str | os.PathLike[str], seed: int, suffix: str = ".png") -> pathlib.Path:
    """Where the image of a seed lives: ``folder/000/000042.png``, at most 1000 files to a folder."""
    return pathlib.Path(folder) / f"{seed // 1000:03d}" / f"{seed:06d}{suffix}"


@dataclasses.dataclass(frozen=True)
class ImageFormat:
    """How the images of a run are written, decided before they are made: PNG where it can hold them, else .npy.

    Attributes:
      suffix: ".png" or ".npy", one file an image.
      value_range: (lo, hi) of float32 files; None for uint8.
    """

    suffix: str = ".png"
    value_range: tuple[float, float] | None = None

    @classmethod
    def of(cls, shape: Sequence[int], value_range: tuple[float, float] | None = None) -> ImageFormat:
        """The format for images (H, W, C) of a data set with a declared range, or none."""
        png = shape[-1] in (1, 3) and value_range is None
        return cls(".png" if png else ".npy", value_range)

    def describe(self) -> dict[str, Any]:
        """For a manifest."""
        facts: dict[str, Any] = {"suffix": self.suffix, "dtype": "float32" if self.value_range else "uint8"}
        return facts | ({"range": list(self.value_range)} if self.value_range else {})

    def size(self, shape: Sequence[int]) -> int:
        """Bytes of one image (H, W, C), at most."""
        return math.prod(shape) * (4 if self.value_range else 1) + 1024

    def save(self, folder: str | os.PathLike[str], seed: int, image: np.ndarray) -> str:
        """Write the image (H, W, C) of a seed, atomically; returns the file's SHA-256."""
        path = seed_path(folder, seed, self.suffix)
        if self.suffix == ".png":
            return save_png(path, image)
        buffer = io.BytesIO()
        np.save(buffer, np.asarray(image, np.float32) if self.value_range else to_uint8(image))
        atomic_write(path, lambda file: file.write(buffer.getvalue()))
        return hashlib.sha256(buffer.getvalue()).hexdigest()

    def load(self, folder: str | os.PathLike[str], seed: int) -> np.ndarray:
        """Read what :meth:`save` wrote, (H, W, C) uint8, or float32 in the range."""
        path = seed_path(folder, seed, self.suffix)
        return load_png(path) if self.suffix == ".png" else read_npy(path)


def visible(images: np.ndarray, value_range: tuple[float, float] | None = None) -> np.ndarray:
    """Images as they can be shown: uint8, gray or RGB; of 2, 4 and more channels each in gray, side by side.

    Args:
      images: (n, H, W, C) uint8, or float in [0, 1] or the range.
      value_range: (lo, hi) of float images.

    Returns:
      (n, H, W, 1 or 3), or (n, H, W C, 1).
    """
    if value_range is not None and images.dtype != np.uint8:
        images = (images - value_range[0]) / (value_range[1] - value_range[0])
    pixels = to_uint8(images)
    if pixels.shape[-1] in (1, 3):
        return pixels
    count, height, width, channels = pixels.shape
    return pixels.transpose(0, 1, 3, 2).reshape(count, height, channels * width, 1)


def enlarge(images: np.ndarray, scale: int) -> np.ndarray:
    """Repeat each pixel scale x scale times, so that small images can be seen.

    Args:
      images: (..., H, W, C).
      scale: whole number of at least 1.

    Returns:
      (..., scale H, scale W, C).
    """
    return np.repeat(np.repeat(np.asarray(images), scale, axis=-3), scale, axis=-2)


def grid(images: np.ndarray, columns: int | None = None, pad: int = 2) -> np.ndarray:
    """Tile images row by row on white.

    Args:
      images: (n, H, W, C) uint8 or float in [0, 1].
      columns: images per row; by default the grid is about square.
      pad: white pixels between images.

    Returns:
      (rows (H + pad) + pad, columns (W + pad) + pad, C) uint8.
    """
    pixels = to_uint8(images)
    count, height, width, channels = pixels.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    canvas = np.full((rows * (height + pad) + pad, columns * (width + pad) + pad, channels), 255, np.uint8)
    for index, image in enumerate(pixels):
        top = pad + (index // columns) * (height + pad)
        left = pad + (index % columns) * (width + pad)
        canvas[top : top + height, left : left + width] = image
    return canvas


def visible_scale(size: int, target: int = 64) -> int:
    """The whole-number enlargement that brings images of this size to about ``target`` pixels."""
    return max(1, round(target / size))
