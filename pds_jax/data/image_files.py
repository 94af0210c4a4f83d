"""Reading a user's images: a folder, a .zip of image files, a .npy or .npz array."""

from __future__ import annotations

import io
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from pds_jax.io.npy import read_npy, read_npz
from pds_jax.types import PdsError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_MODES = {1: "L", 3: "RGB"}
_MAX_BYTES = 1 << 28  # of one file in an archive, unpacked


def read_images(
    path: str | os.PathLike[str], *, size: int | None = None, channels: int | None = None, batch_size: int = 64
) -> Iterator[np.ndarray]:
    """Pass once over the images at a path, in the order of their names, with constant memory.

    Args:
      path: a folder (searched through), a .zip of image files, one image file, or a .npy or .npz holding one array
        (n, H, W, C).
      size: crop files to their central square and shrink or enlarge it to size x size; None takes them as they are.
      channels: 1 or 3; by default that of the first file.
      batch_size: images a batch.

    Yields:
      (b, H, W, C), uint8 for image files, the array's own dtype for arrays.

    Raises:
      PdsError: nothing there, an unreadable file or images of different sizes, each with the file's name.
    """
    path = pathlib.Path(path)
    if channels not in (None, 1, 3):
        raise PdsError(f"channels={channels}: image files are read as 1 (gray) or 3 (RGB)")
    if size is not None and size < 1:
        raise PdsError(f"image size {size}: use at least one pixel")
    if path.suffix.lower() in (".npy", ".npz"):
        if size is not None or channels is not None:
            raise PdsError(f"{path} is an array and is taken as it is; leave image size and channels out")
        yield from _of_array(path, batch_size)
    else:
        yield from _of_files(path, size, channels, batch_size)


def _of_array(path: pathlib.Path, batch_size: int) -> Iterator[np.ndarray]:
    if path.suffix.lower() == ".npy":
        array = read_npy(path)
    else:
        arrays = {name: value for name, value in read_npz(path).items() if value.ndim == 4}
        if len(arrays) != 1:
            raise PdsError(f"{path} holds the arrays (n, H, W, C) {sorted(arrays)}; exactly one is needed")
        array = next(iter(arrays.values()))
    if array.ndim != 4:
        raise PdsError(f"{path} holds an array of shape {array.shape}; images are (n, H, W, C)")
    for start in range(0, len(array), batch_size):
        yield array[start : start + batch_size]


def _of_files(path: pathlib.Path, size: int | None, channels: int | None, batch_size: int) -> Iterator[np.ndarray]:
    batch: list[np.ndarray] = []
    first: tuple[str, tuple[int, ...]] | None = None
    for name, data in _files(path):
        image = _decode(name, data, size, channels)
        if first is None:
            first, channels = (name, image.shape), image.shape[2]
        if image.shape != first[1]:
            raise PdsError(
                f"{name} is {image.shape[:2]} pixels but {first[0]} is {first[1][:2]}; give an image size to crop and "
                "resize them to"
            )
        batch.append(image)
        if len(batch) == batch_size:
            yield np.stack(batch)
            batch = []
    if first is None:
        raise PdsError(f"{path} holds no image files ({', '.join(SUFFIXES)})")
    if batch:
        yield np.stack(batch)


def _files(path: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the image files of a folder or a zip, or of one file."""
    try:
        if path.is_file() and _is_image(path.name):
            yield str(path), path.read_bytes()
        elif path.is_dir():
            for file in sorted(path.rglob("*")):
                if _is_image(file.name) and file.is_file():
                    yield str(file), file.read_bytes()
        else:
            with zipfile.ZipFile(path) as archive:
                for name in sorted(archive.namelist()):
                    if _is_image(pathlib.PurePosixPath(name).name):
                        size = archive.getinfo(name).file_size
                        if size > _MAX_BYTES:
                            raise PdsError(f"{path}/{name} unpacks to {size} bytes; no image file is that large")
                        yield f"{path}/{name}", archive.read(name)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise PdsError(f"{path} is neither a folder, .npy or .npz nor a whole .zip ({error})") from error
    except OSError as error:
        raise PdsError(f"cannot read {path}: {error.strerror or error}") from error


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _decode(name: str, data: bytes, size: int | None, channels: int | None) -> np.ndarray:
    """One image file as (H, W, C) uint8."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode.startswith(("I", "F")):
                raise PdsError(f"{name} has more than 8 bits a channel (mode {image.mode}); convert it first")
            gray = image.mode in ("1", "L", "LA")
            converted = image.convert(_MODES[channels or (1 if gray else 3)])
            if size is not None:
                converted = _center_crop(converted).resize((size, size), Image.Resampling.LANCZOS)
            pixels = np.asarray(converted)
    except PdsError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PdsError(f"{name} is not a readable image: {error}") from error
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _center_crop(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
