"""Data sets: random access by image index, so that the stream of batches is a function of (seed, step) alone.

Every source answers ``images(indices) -> (B, H, W, C)`` float32 in [0, 1]. Training at step n reads the indices
n·B … (n+1)·B − 1; nothing has to be saved to resume exactly.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from absl import logging

from pds_jax.data import arrays, fashion_mnist, image_files, photographs, tfds_source
from pds_jax.data.counters import below, uniform
from pds_jax.data.shapes import image_shape
from pds_jax.data.splits import check_split
from pds_jax.types import PdsError, unknown_name


class Source(Protocol):
    """Images by index; an endless source has ``size`` None and any index is good."""

    @property
    def name(self) -> str:
        """For messages and provenance."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        ...

    @property
    def size(self) -> int | None:
        """How many images there are; None if without end."""
        ...

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Return images (B, H, W, C), float32 in [0, 1], of the given indices (B,)."""
        ...


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Images held in memory.

    Attributes:
      name: for messages and provenance.
      data: (n, H, W, C) uint8, or float in [0, 1].
    """

    name: str
    data: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        return self.data.shape[1:]

    @property
    def size(self) -> int:
        """How many images there are."""
        return len(self.data)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Return images (B, H, W, C), float32 in [0, 1]."""
        return arrays.to_unit(self.data[indices])


# --- digits ----------------------------------------------------------------------------------------------------

_DIGITS_TRAIN = 1500


def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1797 handwritten digits, 8x8 gray (UCI ML repository, E. Alpaydin and C. Kaynak, CC BY 4.0).

    A fixed permutation gives 1500 for training and 297 for testing.

    Args:
      split: "train" or "test".

    Returns:
      images (n, 8, 8, 1) float32 in [0, 1] (the 17 gray levels over 16) and labels (n,) int32.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(data.target))
    chosen = order[:_DIGITS_TRAIN] if check_split(split) == "train" else order[_DIGITS_TRAIN:]
    images = (data.images[chosen] / 16.0).astype(np.float32)[..., None]
    return images, data.target[chosen].astype(np.int32)


# --- a user's own images ---------------------------------------------------------------------------------------

_KEPT_BYTES = 2 << 30  # of decoded files


@dataclasses.dataclass(frozen=True)
class PathSource:
    """Images at a path, read when they are asked for.

    Attributes:
      found: what is there.
      kept: all images as stored, where they are held in memory.
    """

    found: image_files.FileImages | image_files.ArrayImages
    kept: np.ndarray | None = None

    @property
    def name(self) -> str:
        """The path."""
        return self.found.name

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        return self.found.shape

    @property
    def size(self) -> int:
        """How many images there are."""
        return len(self.found)

    @property
    def record(self) -> dict[str, Any]:
        """What was read, what was skipped and why, for provenance."""
        return self.found.record

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Return images (B, H, W, C), float32 in [0, 1]."""
        if self.kept is not None:
            return arrays.to_unit(self.kept[indices])
        return arrays.to_unit(self.found.stored([int(index) for index in indices]))


def from_path(
    path: str | os.PathLike[str],
    *,
    size: int | Sequence[int] | None = None,
    channels: int | None = None,
    convert: bool = False,
    value_range: Sequence[float] | None = None,
) -> PathSource:
    """Images of a folder, an archive of image files, or a .npy or .npz array, see ``image_files.open_images``.

    Files of up to 2 GiB of pixels are decoded once and kept; of more, each is decoded whenever it is asked for. Arrays
    stay on disk.

    Args:
      path: the folder or file.
      size: crop files to a central box and resize them to (H, W), or to a square; None takes them as they are.
      channels: that images must have.
      convert: bring files to ``channels`` instead of refusing them.
      value_range: (lo, hi) of floating-point arrays.

    Raises:
      PdsError: nothing there, a broken file, or files of different sizes or channels (two are named).
    """
    found = image_files.open_images(path, size=size, channels=channels, convert=convert, value_range=value_range)
    image_files.log(found)
    small = isinstance(found, image_files.FileImages) and len(found) * math.prod(found.shape) <= _KEPT_BYTES
    return PathSource(found, np.concatenate(list(image_files.batches(found))) if small else None)


# --- choosing a source and streaming it ------------------------------------------------------------------------


def get_source(config: Any, split: str = "train") -> Source:
    """The source of images that a configuration names in ``config.data.dataset``.

    Args:
      config: with data.dataset: photos, landscapes, digits, fashion, a name of score_sde's (CIFAR10, SVHN, CELEBA,
        LSUN, FFHQ, CelebAHQ), or a path (see :func:`from_path`); data.image_size, one number or (H, W);
        data.num_channels; for a path data.resize to crop and resize files, data.convert_images to bring them to
        num_channels, and data.range, the (lo, hi) of floating-point arrays.
      split: "train" or "test"; a path has one split.

    Raises:
      PdsError: unknown name, or the data do not have the configured size or channels.
    """
    name, wanted = config.data.dataset, image_shape(config)
    known: dict[str, Callable[[], Source]] = {
        "digits": lambda: ArraySource(f"digits-{split}", digits(split)[0]),
        "fashion": lambda: ArraySource(f"fashion-{split}", fashion_mnist.fashion(split)[0]),
        "photos": lambda: photographs.photos(split, wanted[:2]),
        "landscapes": lambda: photographs.landscapes(split, wanted[:2]),
    }
    if name in known or name.upper() in tfds_source.NAMES:
        if pathlib.Path(name).exists():
            logging.warning("data.dataset=%s is the data set of that name; write ./%s for what lies here", name, name)
    if name in known:
        source = known[name]()
    elif name.upper() in tfds_source.NAMES:
        source = tfds_source.open_source(config, split)
    elif name and pathlib.Path(name).exists():
        source = from_path(
            name,
            size=wanted[:2] if config.data.get("resize", False) else None,
            channels=wanted[2],
            convert=bool(config.data.get("convert_images", False)),
            value_range=get_range(config),
        )
    else:
        names = sorted([*known, *tfds_source.NAMES])
        raise PdsError(unknown_name("data.dataset", name, ["a path that exists", *names]))
    if tuple(source.shape) != wanted:
        raise PdsError(
            f"data set {source.name} holds images {tuple(source.shape)}, the configuration says {wanted}; change "
            "data.image_size and data.num_channels, or use --resize_images (data.resize=True) for image files"
        )
    return source


def get_range(config: Any) -> tuple[float, float] | None:
    """The range (lo, hi) that a configuration declares in data.range for floating-point images; None for none."""
    return arrays.checked_range(config.data.get("range", None))


@dataclasses.dataclass(frozen=True)
class Stream:
    """Training batches as a function of the step.

    A finite source is passed epoch by epoch, each in its own order; images are flipped left-right and dequantised
    when asked for.

    Attributes:
      source: where images come from.
      batch_size: images per step.
      seed: decides order, flips and dequantisation.
      random_flip: flip half of the images left-right.
      uniform_dequantization: x -> (255 x + u) / 256 with u uniform in [0, 1).
    """

    source: Source
    batch_size: int
    seed: int
    random_flip: bool = False
    uniform_dequantization: bool = False

    def batch(self, step: int) -> np.ndarray:
        """The batch (B, H, W, C), float32 in [0, 1], of a step."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        images = self.source.images(self._indices(positions))
        if self.random_flip:
            flip = below(self.seed, 10, positions, 2).astype(bool)
            images[flip] = images[flip, :, ::-1]
        if self.uniform_dequantization:
            pixels = (
                np.arange(images[0].size, dtype=np.uint64)[None]
                + (positions.astype(np.uint64) * np.uint64(images[0].size))[:, None]
            )
            noise = uniform(self.seed, 11, pixels).reshape(images.shape)
            images = ((images * 255.0 + noise) / 256.0).astype(np.float32)
        return images

    def _indices(self, positions: np.ndarray) -> np.ndarray:
        size = self.source.size
        if size is None:
            return positions
        indices = np.empty_like(positions)
        for epoch in np.unique(positions // size):
            inside = positions // size == epoch
            order = _order(self.seed, int(epoch), size)
            indices[inside] = order[positions[inside] - epoch * size]
        return indices


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of an epoch, a permutation of 0 … size − 1."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(size)


def iterate(source: Source, batch_size: int, count: int | None = None) -> Iterator[np.ndarray]:
    """Pass a source once, in order; the last batch may be ragged.

    Args:
      source: where images come from.
      batch_size: images a batch.
      count: how many images; needed for an endless source.

    Yields:
      (b, H, W, C) float32 in [0, 1].

    Raises:
      PdsError: an endless source without ``count``.
    """
    size = source.size if count is None else min(count, source.size or count)
    if size is None:
        raise PdsError(f"{source.name} is endless; say how many images")
    for start in range(0, size, batch_size):
        yield source.images(np.arange(start, min(start + batch_size, size)))


def get_data_scaler(config: Any) -> Callable[[Any], Any]:
    """Map [0, 1] to the network's range: x -> 2 x − 1 if data.centered, else x."""
    return (lambda x: x * 2.0 - 1.0) if config.data.centered else (lambda x: x)


def get_data_inverse_scaler(config: Any) -> Callable[[Any], Any]:
    """Inverse of :func:`get_data_scaler`, the same function for the same range."""
    return _from_centered if config.data.centered else _same


def _from_centered(x: Any) -> Any:
    return (x + 1.0) / 2.0


def _same(x: Any) -> Any:
    return x
