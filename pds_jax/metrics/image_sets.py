"""Sets of images to evaluate: uint8, read by index, each with a key that identifies its content.

Nothing is converted silently: colour mode, bit depth and size of every file are checked before any long work, because
each of them changes FID without a trace.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from pds_jax.data import image_files
from pds_jax.data.image_files import ArrayImages, FileImages
from pds_jax.data.pictures import Rule
from pds_jax.io.files import read_json
from pds_jax.io.images import to_uint8
from pds_jax.types import PdsError

__all__ = ["ArrayImages", "DrawnImages", "FileImages", "ImageSet", "checked_pixels", "open_images", "select"]


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


def open_images(
    path: str | os.PathLike[str],
    *,
    channels: int | None = None,
    convert: bool = False,
    value_range: Sequence[float] | None = None,
) -> FileImages | ArrayImages:
    """Open images to be judged, by the reader that training and statistics use (``data.image_files.open_images``).

    Args:
      path: a folder, an archive (.zip, .tar), an image file, or a .npz or .npy of images.
      channels: that images must have.
      convert: bring image files to ``channels``, by default 3, and repeat gray arrays.
      value_range: (lo, hi) of floating-point arrays; the folder of a sampling run says its own.

    Raises:
      PdsError: nothing there, or files that are broken, of mixed sizes or modes, or of more than 8 bits, by name.
    """
    value_range = value_range or _range_of_run(pathlib.Path(path))
    return image_files.open_images(path, channels=channels, convert=convert, value_range=value_range)


def _range_of_run(place: pathlib.Path) -> Sequence[float] | None:
    """The range that the manifest of a sampling run names; None where there is no run, or it wrote PNG."""
    try:
        manifest = read_json(place / "manifest.json")
    except PdsError:
        return None
    identity = manifest.get("identity") if isinstance(manifest, dict) else None
    written = identity.get("files") if isinstance(identity, dict) else None
    return written.get("range") if isinstance(written, dict) else None


def checked_pixels(array: np.ndarray, name: str, convert: bool = False) -> np.ndarray:
    """Bring an array of images (n, H, W, C) in memory to uint8, see ``data.arrays.to_bytes``.

    Raises:
      PdsError: another shape, another data range, or no images.
    """
    found = ArrayImages.open(name, array, Rule(convert=convert))
    return found.images(range(len(found)))


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


# --- choosing ------------------------------------------------------------------------------------------------------


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
