"""Statistics of a data set: one streaming pass over its images, saved as one .npz with its provenance.

Everything is a sum over images, Σ x, Σ x² and Σ |F x|² (F the unnormalised 2-D DFT over (H, W), x in [0, 1]), so the
pass needs constant memory and per-device sums may simply be added. From the sums:

    μ   = mean x                             mean image
    P   = (mean |F x|² − |F μ|²) / (H W)     power spectrum about the mean; white noise of variance 1 has P = 1
    r_f = log(1 + mean |F x|²)               what the frequency filter R is made from
    r_a = mean x²                            what the pixel filter A is made from
    S   = Re (mean F x_i conj F x_j − F μ_i conj F μ_j) / (H W) for channels i < j, whose eigenvectors are the colours
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from pds_jax import ops
from pds_jax.io.files import atomic_write
from pds_jax.io.npy import read_npz
from pds_jax.types import Array, PdsError
from pds_jax.version import __version__

_FORMAT = "pds_jax.statistics/1"
_BLOCK_PIXELS = 1 << 21
_BLOCK_VALUES = 1 << 27
_RANGE_SLACK = 1e-4
_ROUNDING = 1e-7


@flax.struct.dataclass
class Sums:
    """Sums over images; add two of them, or ``jax.lax.psum`` one, to merge.

    Attributes:
      count: () number of images.
      x: (H, W, C) Σ x.
      x2: (H, W, C) Σ x².
      power: (H, W // 2 + 1, C) Σ |F x|².
      cross: (H, W // 2 + 1, C (C − 1)/2) Σ Re F x_i conj F x_j for channels i < j; None for one channel.
    """

    count: Array
    x: Array
    x2: Array
    power: Array
    cross: Array | None


def accumulate(images: Array, weights: Array) -> Sums:
    """Sums over one block of images; pure, so it may be jitted, pmapped and psummed.

    Args:
      images: (B, H, W, C) float32 in [0, 1].
      weights: (B,) float32, 1 for an image and 0 for padding.

    Returns:
      The float32 sums of the block.
    """
    weighted = ops.batch_mul(weights, images)
    spectrum = ops.rfft2(images)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    cross = None
    if images.shape[-1] > 1:
        first, second = np.triu_indices(images.shape[-1], 1)
        re, im = spectrum.real, spectrum.imag
        products = re[..., first] * re[..., second] + im[..., first] * im[..., second]
        cross = jnp.sum(ops.batch_mul(weights, products), axis=0)
    return Sums(
        count=jnp.sum(weights),
        x=jnp.sum(weighted, axis=0),
        x2=jnp.sum(weighted * images, axis=0),
        power=jnp.sum(ops.batch_mul(weights, power), axis=0),
        cross=cross,
    )


_accumulate = jax.jit(accumulate)


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of images in [0, 1]; arrays are float32 on the host.

    Attributes:
      mean: (H, W, C) mean image μ.
      power: (H, W // 2 + 1, C) power spectrum P about the mean, white noise of variance 1 having P = 1.
      r_f: (H, W, C) log(1 + mean |F x|²), zero frequency first.
      r_a: (H, W, C) mean x².
      count: number of images.
      provenance: where the numbers come from: recipe, count, shape, channel order, data range, FFT convention,
        hash of the images, package version.
      cross: (H, W // 2 + 1, C (C − 1)/2) cross-spectra S about the mean; None for one channel, and in older files.
    """

    mean: np.ndarray
    power: np.ndarray
    r_f: np.ndarray
    r_a: np.ndarray
    count: int
    provenance: dict[str, Any]
    cross: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        height, width, channels = self.mean.shape
        return height, width, channels

    @property
    def pixel_moments(self) -> tuple[float, float]:
        """Mean and standard deviation of all pixels of all images, in units of the range [0, 1]."""
        mean = float(self.mean.mean(dtype=np.float64))
        return mean, float(np.sqrt(max(self.r_a.mean(dtype=np.float64) - mean**2, 0.0)))

    def to_range(self, centered: bool) -> tuple[np.ndarray, np.ndarray]:
        """Mean and power in the range that a model works in: μ → 2μ − 1, P → 4P when it is [-1, 1].

        Args:
          centered: True for [-1, 1] (``config.data.centered``), False for [0, 1].

        Returns:
          (mean (H, W, C), power (H, W // 2 + 1, C)) float32.
        """
        if not centered:
            return self.mean, self.power
        return np.float32(2) * self.mean - np.float32(1), np.float32(4) * self.power

    def moments(self, centered: bool) -> tuple[np.ndarray, ...]:
        """Mean, power and, where the file holds them, cross-spectra in the range that a model works in.

        Args:
          centered: True for [-1, 1] (``config.data.centered``), False for [0, 1].

        Returns:
          (mean (H, W, C), power (H, W // 2 + 1, C)[, cross (H, W // 2 + 1, C (C − 1)/2)]) float32.
        """
        if self.cross is None:
            return self.to_range(centered)
        return *self.to_range(centered), np.float32(4 if centered else 1) * self.cross

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise if images are of another shape than those of the statistics.

        Args:
          shape: (H, W, C) of the images.

        Raises:
          PdsError: the shapes differ.
        """
        if tuple(shape) != self.shape:
            raise PdsError(
                f"the statistics are of images (H, W, C) = {self.shape}, the model makes {tuple(shape)}; make them "
                "again from images of the model's size with scripts/make_statistics.py"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one .npz, whole or not at all.

        Raises:
          PdsError: the file cannot be written.
        """
        arrays = {"mean": self.mean, "power": self.power, "r_f": self.r_f, "r_a": self.r_a}
        if self.cross is not None:
            arrays["cross"] = self.cross
        record = {**self.provenance, "format": _FORMAT, "count": self.count, "arrays_sha256": _digest(arrays)}
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, provenance=np.array(json.dumps(record, sort_keys=True)), **arrays)
        atomic_write(path, lambda file: file.write(buffer.getvalue()))

    def to_masks(self, folder: str | os.PathLike[str]) -> tuple[pathlib.Path, pathlib.Path]:
        """Write the raw masks of the PyTorch release: freq_mask.npy = r_f, space_mask.npy = r_a, each (C, H, W).

        Args:
          folder: where the two files go.

        Returns:
          Their paths.

        Raises:
          PdsError: a file cannot be written.
        """
        paths = pathlib.Path(folder) / "freq_mask.npy", pathlib.Path(folder) / "space_mask.npy"
        for path, raw in zip(paths, (self.r_f, self.r_a), strict=True):
            official = np.ascontiguousarray(raw.transpose(2, 0, 1))
            atomic_write(path, functools.partial(np.save, arr=official))
        return paths


def load(path: str | os.PathLike[str]) -> Statistics:
    """Read what :meth:`Statistics.save` wrote.

    Args:
      path: the .npz file.

    Returns:
      The statistics.

    Raises:
      PdsError: the file is missing, truncated, altered or of another program; nothing is unpickled.
    """
    arrays = read_npz(path)
    record = _read_record(arrays.pop("provenance", None), path)
    _check_arrays(arrays, record, path)
    count = record.pop("count")
    record = {key: value for key, value in record.items() if key not in ("format", "arrays_sha256")}
    return Statistics(**arrays, count=count, provenance={**record, "count": count})


def compute_statistics(
    images: Iterable[Any],
    *,
    channel_order: str | None = None,
    limit: int | None = None,
    block: int | None = None,
    source: Mapping[str, Any] | None = None,
    sums_fn: Callable[[Any, Any], Sums] = _accumulate,
) -> Statistics:
    """Compute the statistics of images in one pass, in constant memory.

    μ, P, r_f, r_a as at the top of this module. Images are regrouped into blocks of a fixed size, so the result does
    not depend on how they were batched; blocks are summed in float32, their sums in float64.

    Args:
      images: batches (B, H, W, C), each of any B, uint8 or floating point in [0, 1]; any H, W, C.
      channel_order: recorded as it is; by default "RGB" for three channels, "gray" for one.
      limit: stop after this many images.
      source: origin of the images, for the provenance: files that were read or ignored.
      block: images per block; by default what keeps a block near two million values.
      sums_fn: sums of one block, by default :func:`accumulate` on one device; ``parallel.py`` gives one that splits
        the block over devices and adds the sums.

    Returns:
      The statistics.

    Raises:
      PdsError: no image, images of different sizes, another dtype, values outside [0, 1] or not finite.
    """
    digest = hashlib.sha256()
    total: Sums | None = None
    for chunk, weights in _blocks(_limited(checked_images(images), limit), block):
        digest.update(chunk[: int(weights.sum())].astype("<f4").tobytes())
        sums = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), sums_fn(chunk, weights))
        total = sums if total is None else jax.tree.map(np.add, total, sums)
    if total is None:
        raise PdsError("no image was given; statistics need at least one (about 200 are enough for PDS)")
    made = finalize(total, images_sha256=digest.hexdigest(), channel_order=channel_order)
    if source is None:
        return made
    return dataclasses.replace(made, provenance={**made.provenance, "source": dict(source)})


def finalize(sums: Sums, *, images_sha256: str, channel_order: str | None = None) -> Statistics:
    """Turn float64 sums into statistics.

    Args:
      sums: totals over all images.
      images_sha256: hash of the images, for the provenance.
      channel_order: see :func:`compute_statistics`.

    Returns:
      The statistics.
    """
    count = int(round(float(sums.count)))
    mean, mean_x2, mean_power = (np.asarray(leaf, np.float64) / count for leaf in (sums.x, sums.x2, sums.power))
    height, width, channels = mean.shape
    transform = np.fft.rfft2(mean, axes=(0, 1))
    of_mean = np.abs(transform) ** 2
    # Rounding of the float32 sums may exceed a vanishing difference; P must stay positive to be divided by.
    floor = np.maximum(_ROUNDING * mean_power, 1e-8)
    power = np.maximum(mean_power - of_mean, floor) / (height * width)
    cross = None
    if sums.cross is not None:
        first, second = np.triu_indices(channels, 1)
        of_means = (transform[..., first] * transform[..., second].conj()).real
        cross = _even((np.asarray(sums.cross, np.float64) / count - of_means) / (height * width), width)
    provenance = {
        "recipe": "r_f = log(1 + mean |F x|^2), r_a = mean x^2 (raw; for ijcv2025 and eccv2022)",
        "count": count,
        "shape": [height, width, channels],
        "channel_order": channel_order or {1: "gray", 3: "RGB"}.get(channels, f"{channels} channels"),
        "data_range": [0.0, 1.0],
        "fft": "unnormalised 2-D DFT over (H, W), zero frequency first; power divided by H W",
        "images_sha256": images_sha256,
        "package_version": __version__,
    }
    return Statistics(
        mean=mean.astype(np.float32),
        power=_even(power, width).astype(np.float32),
        r_f=np.log1p(full_plane(_even(mean_power, width), width)).astype(np.float32),
        r_a=mean_x2.astype(np.float32),
        count=count,
        provenance=provenance,
        cross=None if cross is None else cross.astype(np.float32),
    )


def full_plane(half: np.ndarray, width: int) -> np.ndarray:
    """Extend an even real function of frequency from the half plane: R(−k) = R(k).

    Args:
      half: (H, W // 2 + 1, C).
      width: W.

    Returns:
      (H, W, C), zero frequency first.
    """
    mirrored = np.roll(half[::-1], 1, axis=0)[:, 1 : (width + 1) // 2]
    return np.concatenate([half, mirrored[:, ::-1]], axis=1)


def estimate_sigma_max(images: Any, *, limit: int | None = 5000, block: int = 512) -> float:
    """Largest Euclidean distance between two images, the usual choice of σ_max for VE.

    max_{i,j} ‖x_i − x_j‖ over images in [0, 1]; double it for a model that works in [-1, 1].
    Source: Song and Ermon, "Improved Techniques for Training Score-Based Generative Models", Technique 1.

    Args:
      images: an array (N, H, W, C) or an iterable of batches, uint8 or floating point in [0, 1].
      limit: compare at most this many images: evenly spaced ones of an array, the first ones of an iterable. None
        compares all.
      block: images per block of the distance matrix.

    Returns:
      The distance, in units of one pixel's range.

    Raises:
      PdsError: fewer than two images, or bad images as in :func:`compute_statistics`.
    """
    rows = _rows(images, limit)
    if len(rows) < 2:
        raise PdsError(f"the largest distance between images needs at least two, got {len(rows)}")
    center = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    rows -= center  # keeps the expanded square below accurate
    block = max(1, min(block, _BLOCK_VALUES // rows.shape[1]))  # at most half a gigabyte
    best, pair = -1.0, (0, 0)
    for i in range(0, len(rows), block):
        for j in range(i, len(rows), block):
            value, index = _farthest(_padded(rows[i : i + block], block), _padded(rows[j : j + block], block))
            if float(value) > best:
                best, at = float(value), int(index)
                pair = (i + at // block, j + at % block)
    a, b = (rows[min(k, len(rows) - 1)].astype(np.float64) for k in pair)
    return float(np.linalg.norm(a - b))


def checked_images(batches: Iterable[Any]) -> Iterator[np.ndarray]:
    """Check batches of images and convert them to float32 in [0, 1].

    Args:
      batches: arrays (B, H, W, C), uint8 or floating point in [0, 1].

    Yields:
      float32 (B, H, W, C).

    Raises:
      PdsError: images of different sizes, another dtype, values outside [0, 1] or not finite; names the image.
    """
    seen, shape = 0, None
    for batch in batches:
        try:
            array = np.asarray(batch)
        except ValueError as error:
            raise PdsError(f"images {seen} and on differ in size ({error}); resize them to one size") from error
        if array.ndim != 4 or 0 in array.shape[1:]:
            raise PdsError(f"expected batches of images (B, H, W, C), got shape {array.shape} after {seen} images")
        if shape is not None and array.shape[1:] != shape:
            raise PdsError(
                f"image {seen} has (H, W, C) = {array.shape[1:]}, those before have {shape}; resize them to one size"
            )
        shape = array.shape[1:]
        yield _unit_range(array, seen)
        seen += len(array)


def _unit_range(array: np.ndarray, first: int) -> np.ndarray:
    """Float32 images in [0, 1] from uint8 or floating-point ones; `first` numbers the first of them."""
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255)
    if not np.issubdtype(array.dtype, np.floating) and array.dtype.name != "bfloat16":
        raise PdsError(f"images of dtype {array.dtype}: give uint8 in 0..255 or floating point in [0, 1]")
    images = array.astype(np.float32)
    low, high = (f(images, axis=(1, 2, 3)) for f in (np.min, np.max))
    bad = np.flatnonzero(~((low >= -_RANGE_SLACK) & (high <= 1 + _RANGE_SLACK)))
    if bad.size:
        k = int(bad[0])
        raise PdsError(
            f"image {first + k} has values in [{low[k]:g}, {high[k]:g}]; they must be finite and in [0, 1] (divide "
            "0..255 images by 255, map [-1, 1] to [0, 1] first)"
        )
    return images


def _limited(batches: Iterator[np.ndarray], limit: int | None) -> Iterator[np.ndarray]:
    """At most `limit` images of the batches."""
    if limit is not None and limit < 1:
        raise PdsError(f"limit={limit}: use at least one image")
    left = limit
    for batch in batches:
        yield batch[:left]
        if left is not None:
            left -= len(batch)
            if left <= 0:
                return


def _blocks(batches: Iterator[np.ndarray], block: int | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Regroup batches into blocks of one size with their weights; the last is padded with zeros."""
    buffer: np.ndarray | None = None
    filled = 0
    for batch in batches:
        if buffer is None:
            size = block or int(np.clip(_BLOCK_PIXELS // np.prod(batch.shape[1:]), 1, 256))
            buffer = np.zeros((size, *batch.shape[1:]), np.float32)
        while len(batch):
            take = min(len(batch), len(buffer) - filled)
            buffer[filled : filled + take] = batch[:take]
            filled, batch = filled + take, batch[take:]
            if filled == len(buffer):
                yield buffer, np.ones(filled, np.float32)
                buffer, filled = np.zeros_like(buffer), 0
    if buffer is not None and filled:
        yield buffer, (np.arange(len(buffer)) < filled).astype(np.float32)


def _even(half: np.ndarray, width: int) -> np.ndarray:
    """Make a half plane exactly even in the columns that hold both k and −k."""
    columns = [0] if width % 2 else [0, width // 2]
    even = half.copy()
    for column in columns:
        even[:, column] = (half[:, column] + np.roll(half[::-1, column], 1, axis=0)) / 2
    return even


def _rows(images: Any, limit: int | None) -> np.ndarray:
    """At most `limit` images as rows of one matrix."""
    if hasattr(images, "ndim"):
        if limit is not None and images.ndim == 4 and len(images) > limit:
            images = images[np.linspace(0, len(images) - 1, limit).round().astype(int)]
        images = [images]
    batches = list(_limited(checked_images(images), limit))
    if not batches:
        return np.zeros((0, 1), np.float32)
    return np.concatenate([batch.reshape(len(batch), -1) for batch in batches])


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    """Repeat the last row up to a fixed number of rows, so that one compiled program serves all blocks."""
    return np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)])


@jax.jit
def _farthest(a: Array, b: Array) -> tuple[Array, Array]:
    """Largest squared distance between a row of a and a row of b, and its flat index."""
    inner = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.sum(jnp.square(a), axis=1)[:, None] + jnp.sum(jnp.square(b), axis=1)[None, :] - 2 * inner
    return jnp.max(squares), jnp.argmax(squares)


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + np.ascontiguousarray(arrays[name], "<f4").tobytes())
    return digest.hexdigest()


def _read_record(stored: np.ndarray | None, path: str | os.PathLike[str]) -> dict[str, Any]:
    """The provenance of a statistics file, after checking that pds_jax wrote it."""
    try:
        record = json.loads(str(stored)) if stored is not None else None
    except json.JSONDecodeError:
        record = None
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise PdsError(
            f"{path} is not a statistics file of pds_jax (no provenance of format {_FORMAT!r}); official raw masks go "
            "to --freq_mask_path and --space_mask_path, others are made by scripts/make_statistics.py"
        )
    return record


def _check_arrays(arrays: dict[str, np.ndarray], record: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Raise if arrays do not belong to their record."""
    try:
        height, width, channels = (int(n) for n in record["shape"])
        count = record["count"]
    except (KeyError, TypeError, ValueError) as error:
        raise PdsError(f"{path}: its provenance lacks a valid shape or count; make the file again") from error
    if not isinstance(count, int) or count < 1:
        raise PdsError(f"{path}: image count {count!r} in its provenance is not a positive number")
    full, half = (height, width, channels), (height, width // 2 + 1, channels)
    expected = {"mean": full, "power": half, "r_f": full, "r_a": full}
    if set(arrays) - {"cross"} != set(expected):
        raise PdsError(f"{path} holds the arrays {sorted(set(arrays) - {'cross'})}, expected {sorted(expected)}")
    if "cross" in arrays:
        expected["cross"] = (height, width // 2 + 1, channels * (channels - 1) // 2)
    for name, shape in expected.items():
        array = arrays[name]
        if array.shape != shape or array.dtype != np.float32:
            raise PdsError(f"{path}: {name} is {array.dtype} {array.shape}, expected float32 {shape}")
        if not np.isfinite(array).all() or (name not in ("mean", "cross") and (array < 0).any()):
            raise PdsError(f"{path}: {name} holds negative or non-finite values; make the file again")
    if record.get("arrays_sha256") != _digest(arrays):
        raise PdsError(f"{path}: the arrays do not match their recorded hash; the file was altered, make it again")
