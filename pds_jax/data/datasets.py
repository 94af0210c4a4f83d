"""Data sets: random access by image index, so that the stream of batches is a function of (seed, step) alone.

Every source answers ``images(indices) -> (B, H, W, C)`` float32 in [0, 1]. Training at step n reads the indices
n·B … (n+1)·B − 1; nothing has to be saved to resume exactly.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from pds_jax.data import fashion_mnist, photographs, tfds_source
from pds_jax.data.counters import below, uniform
from pds_jax.data.image_files import read_images
from pds_jax.data.splits import check_split
from pds_jax.types import PdsError


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
        return to_unit_range(self.data[indices])


def to_unit_range(images: np.ndarray) -> np.ndarray:
    """Bring uint8 to float32 in [0, 1] by x / 255; floats are only cast."""
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255.0)
    return images.astype(np.float32)


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

_MEMORY_LIMIT = 16 << 30


def from_path(path: str | os.PathLike[str], *, size: int | None = None, channels: int | None = None) -> ArraySource:
    """Images of a folder or zip of image files, held in memory, or of a .npy or .npz array.

    Args:
      path: the folder or file; a .npy stays on disk and is read image by image.
      size: crop files to their central square and resize them; None takes them as they are.
      channels: 1 or 3 for files; by default that of the first.

    Returns:
      The source.

    Raises:
      PdsError: nothing there, a broken file, files of different sizes (two are named), or more than fits in memory.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() == ".npy":
        return ArraySource(str(path), _mapped(path))
    parts: list[np.ndarray] = []
    held = 0
    is_array = path.suffix.lower() == ".npz"
    options: dict[str, Any] = {} if is_array else {"size": size, "channels": channels}
    for batch in read_images(path, **options):
        parts.append(batch)
        held += batch.nbytes
        if held > _MEMORY_LIMIT:
            limit = _MEMORY_LIMIT >> 30
            raise PdsError(f"{path} holds more than {limit} GiB of images; use one .npy (n, H, W, C) instead")
    return ArraySource(str(path), _checked_range(np.concatenate(parts), path))


def _mapped(path: pathlib.Path) -> np.ndarray:
    try:
        data = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise PdsError(f"{path} is not a readable .npy of images: {error}") from error
    if data.ndim != 4 or len(data) == 0:
        raise PdsError(f"{path} holds an array of shape {data.shape}; images are (n, H, W, C)")
    return _checked_range(data, path)


def _checked_range(data: np.ndarray, path: pathlib.Path) -> np.ndarray:
    """Refuse what is neither uint8 nor float; a sample of images must lie in [0, 1]."""
    if data.dtype == np.uint8:
        return data
    if not np.issubdtype(data.dtype, np.floating):
        raise PdsError(f"{path} holds {data.dtype}; give uint8 in 0..255 or floating point in [0, 1]")
    some = np.asarray(data[:: max(1, len(data) // 256)], np.float32)
    if not (np.isfinite(some).all() and some.min() >= -1e-4 and some.max() <= 1 + 1e-4):
        raise PdsError(f"{path} holds values in [{some.min():g}, {some.max():g}]; floating-point images lie in [0, 1]")
    return data


# --- choosing a source and streaming it ------------------------------------------------------------------------


def get_source(config: Any, split: str = "train") -> Source:
    """The source of images that a configuration names in ``config.data.dataset``.

    Args:
      config: with data.dataset: photos, landscapes, digits, fashion, a name of score_sde's (CIFAR10, SVHN, CELEBA,
        LSUN, FFHQ, CelebAHQ), or a path (see :func:`from_path`); data.image_size, data.num_channels, and data.resize
        to crop and resize the files of a path.
      split: "train" or "test"; a path has one split.

    Raises:
      PdsError: unknown name, or the data do not have the configured size or channels.
    """
    name, size = config.data.dataset, config.data.image_size
    known: dict[str, Callable[[], Source]] = {
        "digits": lambda: ArraySource(f"digits-{split}", digits(split)[0]),
        "fashion": lambda: ArraySource(f"fashion-{split}", fashion_mnist.fashion(split)[0]),
        "photos": lambda: photographs.photos(split, size),
        "landscapes": lambda: photographs.landscapes(split, size),
    }
    if name in known:
        source = known[name]()
    elif name.upper() in tfds_source.NAMES:
        source = tfds_source.open_source(config, split)
    elif pathlib.Path(name).exists():
        resized = size if config.data.get("resize", False) else None
        source = from_path(name, size=resized, channels=config.data.num_channels)
    else:
        names = sorted([*known, *tfds_source.NAMES])
        raise PdsError(f"data.dataset={name!r} is not known: use a path that exists, or one of {names}")
    wanted = (size, size, config.data.num_channels)
    if tuple(source.shape) != wanted:
        raise PdsError(
            f"data set {source.name} holds images {tuple(source.shape)}, the configuration says {wanted}; change "
            "data.image_size and data.num_channels, or set data.resize=True for image files"
        )
    return source


@dataclasses.dataclass(frozen=True)
class Stream:
    """Training batches as a function of the step.

    A finite source is passed epoch by epoch, each in its own order; images are flipped left-right and dequantised
    when asked for.

    Attributes:
      source: where images come from.
      batch_size: images a step.
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
            pixels = np.arange(images[0].size, dtype=np.uint64)[None] + (
                positions.astype(np.uint64) * np.uint64(images[0].size)
            )[:, None]
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
            order = np.random.Generator(np.random.PCG64([self.seed, int(epoch)])).permutation(size)
            indices[inside] = order[positions[inside] - epoch * size]
        return indices


def iterate(source: Source, batch_size: int, count: int | None = None) -> Iterator[np.ndarray]:
    """Pass a source once, in order; the last batch may be ragged.

    Args:
      source: where images come from.
      batch_size: images a batch.
      count: how many images; needed for an endless source.

    Yields:
      (b, H, W, C) float32 in [0, 1].
    """
    size = source.size if count is None else count
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
