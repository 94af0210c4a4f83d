"""Filters R and A from the statistics of data, on the host: the recipes, and the raw masks of the released code."""

from __future__ import annotations

import hashlib
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pds_jax.io.npy import read_npy
from pds_jax.types import Array, PdsError, check_choice

RECIPES = ("ijcv2025", "eccv2022")
_ASYMMETRY = 1e-4  # of the largest value; float32 averages of real spectra stay below 1e-6
_DENSE = 64  # pixels up to which eigenvalues come from a dense matrix


def float32(value: Any) -> Array:
    """As a float32 array."""
    return jnp.asarray(value, jnp.float32)


def frequency_filter(raw: np.ndarray, alpha: Array, recipe: str) -> Array:
    """R = α / (r + α − 1) from a raw mask, r = r_f / max r_f for "ijcv2025"; exactly 1 for α = ∞.

    Args:
      raw: (H, W, C) r_f, ≥ 0.
      alpha: () float32 α.
      recipe: "ijcv2025" or "eccv2022".

    Returns:
      (H, W, C) float32.

    Raises:
      PdsError: the recipe is "ijcv2025" and the mask is 0 everywhere.
    """
    largest = float(raw.max()) if recipe == "ijcv2025" else 1.0
    if not largest > 0:
        raise PdsError("the statistics are zero everywhere (all images black?), so no filter can be made of them")
    return 1 / (1 + (float32(raw.astype(np.float64) / largest) - 1) / alpha)


def pixel_filter(raw: np.ndarray, alpha: Array, recipe: str) -> Array:
    """A from the raw mean squares: :func:`frequency_filter` of them for "ijcv2025", 1 / r_a for "eccv2022".

    Args:
      raw: (H, W, C) r_a, ≥ 0.
      alpha: () float32 α; ∞ gives 1.
      recipe: "ijcv2025" or "eccv2022".

    Returns:
      (H, W, C) float32.

    Raises:
      PdsError: r_a is 0 everywhere ("ijcv2025") or somewhere ("eccv2022").
    """
    if recipe == "ijcv2025":
        return frequency_filter(raw, alpha, recipe)
    if not raw.min() > 0:
        raise PdsError(
            "recipe eccv2022 divides by the mean square of each pixel, which is zero somewhere; use ijcv2025"
        )
    return jnp.where(jnp.isinf(alpha), jnp.float32(1), float32(1 / raw.astype(np.float64)))


def raw_mask(
    mask: str | os.PathLike[str] | np.ndarray | None, what: str, shape: tuple[int, int, int] | None
) -> np.ndarray | None:
    """A raw mask of the released code, checked.

    Args:
      mask: (C, H, W) floats, finite and ≥ 0, or the path of such a .npy; None or "" for none.
      what: its name in messages.
      shape: (H, W, C) that it must have, None for any.

    Returns:
      (H, W, C) float32, or None.

    Raises:
      PdsError: a file that cannot be read, or another dtype, shape or value.
    """
    if mask is None or (isinstance(mask, str) and not mask):
        return None
    if isinstance(mask, str | os.PathLike):
        where, array = f"{what} {os.fspath(mask)}", read_npy(mask)
    else:
        where, array = what, np.asarray(mask)
    if not np.issubdtype(array.dtype, np.floating):
        raise PdsError(
            f"{where} has dtype {array.dtype}; raw masks are floating point: save it as float32, or make it again "
            "with scripts/make_statistics.py --masks_dir"
        )
    if array.ndim != 3 or 0 in array.shape:
        raise PdsError(f"{where} has shape {array.shape}; official raw masks are (C, H, W)")
    if shape is not None and array.shape != (shape[2], shape[0], shape[1]):
        raise PdsError(
            f"{where} is (C, H, W) = {array.shape}, but images (H, W, C) = {tuple(shape)} need "
            f"{(shape[2], shape[0], shape[1])}; make masks of images of that size"
        )
    bad = np.argwhere(~(np.isfinite(array) & (array >= 0)))
    if len(bad):
        at = tuple(int(i) for i in bad[0])
        raise PdsError(f"{where} has the value {array[at]} at (c, h, w) = {at}; it must be finite and >= 0")
    return np.ascontiguousarray(array.transpose(1, 2, 0)).astype(np.float32)


def check_even(values: np.ndarray, width: int, name: str) -> None:
    """Check that a half plane of numbers is that of an even function, v(k) = v(−k), as a real operator needs.

    Args:
      values: (H, W // 2 + 1, C) or (H, W // 2 + 1, 1), laid out as by ``jnp.fft.rfft2``.
      width: W.
      name: of the values, for the error.

    Raises:
      PdsError: in a column that is its own reflection (0, and W/2 for even W), |v(k) − v(−k)| exceeds 1e-4 of the
        largest value.
    """
    columns = [0, width // 2] if width % 2 == 0 else [0]
    own = np.asarray(values, np.float64)[:, columns]
    difference = np.abs(own - np.roll(own[::-1], 1, axis=0))
    if difference.max() > _ASYMMETRY * np.abs(values).max():
        h, w, c = (int(i) for i in np.unravel_index(np.argmax(difference), difference.shape))
        raise PdsError(
            f"{name} is not even: |v(k) - v(-k)| = {difference.max():.4g} at (h, w, c) = {(h, columns[w], c)}; average "
            "v with its reflection in columns 0 and W/2, or compute it with jnp.fft.rfft2 from real images"
        )


def even(raw: np.ndarray) -> np.ndarray:
    """A frequency mask without its rounding errors, (r(k) + r(−k))/2; M is symmetric only if R(k) = R(−k).

    Args:
      raw: (H, W, C), zero frequency first.

    Returns:
      (H, W, C).

    Raises:
      PdsError: |r(k) − r(−k)| exceeds 1e-4 of the largest value.
    """
    difference = np.abs(raw - reflected(raw))
    if difference.max() > _ASYMMETRY * raw.max():
        h, w, c = (int(i) for i in np.unravel_index(np.argmax(difference), raw.shape))
        raise PdsError(
            f"the frequency mask is not symmetric: |r(k) - r(-k)| = {difference.max():.4g} at (c, h, w) = {(c, h, w)} "
            "(zero frequency first); masks made from real images are, so average it with its reflection or make it "
            "again, unshifted, with scripts/make_statistics.py"
        )
    return (raw + reflected(raw)) / 2


def reflected(full: np.ndarray) -> np.ndarray:
    """k -> −k on a full plane (H, W, C), zero frequency first."""
    return np.roll(full[::-1, ::-1], (1, 1), (0, 1))


def squared_frequency(height: int, width: int) -> np.ndarray:
    """(H, W) squared distance |k|² from the zero frequency, in bins."""
    vertical, horizontal = np.fft.fftfreq(height) * height, np.fft.fftfreq(width) * width
    return vertical[:, None] ** 2 + horizontal[None, :] ** 2


def largest_eigenvalue(freq: np.ndarray, space: np.ndarray) -> float:
    """Largest eigenvalue of A F⁻¹ R² F A, R (H, W // 2 + 1, C) and A (H, W, C), by Lanczos iteration."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    def times(v: np.ndarray) -> np.ndarray:
        spectrum = np.square(freq) * np.fft.rfft2(space * v.reshape(space.shape), axes=(0, 1))
        return (space * np.fft.irfft2(spectrum, s=space.shape[:2], axes=(0, 1))).ravel()

    if space.size <= _DENSE:
        return float(np.linalg.eigvalsh(np.stack([times(row) for row in np.eye(space.size)]))[-1])
    start = np.random.Generator(np.random.PCG64(0)).standard_normal(space.size)
    operator = LinearOperator((space.size, space.size), matvec=times, dtype=np.float64)
    return float(eigsh(operator, k=1, which="LA", v0=start, tol=1e-5, return_eigenvectors=False)[0])


def check_alpha(alpha: float) -> None:
    """Raise if a strength is out of range.

    Args:
      alpha: α.

    Raises:
      PdsError: α ≤ 1 or NaN.
    """
    if not alpha > 1:
        raise PdsError(
            f"alpha={alpha}: use a number above 1 (5 is the paper's; the larger the weaker; inf switches PDS off)"
        )


def odd_half_plane(w: np.ndarray | None, shape: tuple[int, int, int]) -> np.ndarray:
    """Half plane of a real odd multiplier; by default w(k) = sin(2π(k_h / H + k_w / W)).

    Args:
      w: (H, W) or (H, W, C), zero frequency first; None for the default.
      shape: (H, W, C).

    Returns:
      (H, W // 2 + 1, C) float64.

    Raises:
      PdsError: w(−k) ≠ −w(k).
    """
    height, width, _ = shape
    if w is None:
        w = np.sin(2 * np.pi * (np.arange(height)[:, None] / height + np.arange(width)[None, :] / width))
    w = np.broadcast_to(w[:, :, None] if w.ndim == 2 else w, shape).astype(np.float64)
    rest = (w + reflected(w)) / 2
    if not np.abs(rest).max() <= 1e-6 * max(np.abs(w).max(), 1e-30):
        raise PdsError(f"solenoidal multiplier w must be odd, w(-k) = -w(k); its even part is {np.abs(rest).max():g}")
    return (w - rest)[:, : width // 2 + 1]


def digest(leaves: dict[str, Array | None]) -> str | None:
    """SHA-256 of the float32 filters that are there, in the order of their names as given; None without any."""
    found = hashlib.sha256()
    for name, leaf in leaves.items():
        if leaf is not None:
            found.update(name.encode() + np.ascontiguousarray(np.asarray(leaf, "<f4")).tobytes())
    return found.hexdigest() if any(leaf is not None for leaf in leaves.values()) else None


def filters_of(
    r_f: np.ndarray | None, r_a: np.ndarray | None, alpha: float | Array, recipe: str
) -> tuple[Array | None, Array | None, tuple[int, int, int] | None]:
    """R (H, W // 2 + 1, C), A (H, W, C) and (H, W, C) from raw statistics (H, W, C); all None for M = I.

    Raises:
      PdsError: a bad alpha or recipe, statistics of two shapes or that no filter can be made of.
    """
    check_choice("recipe", recipe, RECIPES)
    traced = isinstance(alpha, jax.core.Tracer)
    if not traced:
        check_alpha(float(alpha))
    present = r_f if r_f is not None else r_a
    if present is None or (not traced and math.isinf(float(alpha))):
        return None, None, None
    if r_f is not None and r_a is not None and r_f.shape != r_a.shape:
        raise PdsError(f"the frequency mask is of images {r_f.shape}, the space mask of images {r_a.shape}")
    height, width, channels = present.shape
    level = float32(alpha)
    freq = None if r_f is None else frequency_filter(even(r_f), level, recipe)[:, : width // 2 + 1]
    space = None if r_a is None else pixel_filter(r_a, level, recipe)
    return freq, space, (height, width, channels)


def largest_gain(freq: Array | None, space: Array | None) -> Array:
    """Largest eigenvalue of M Mᵀ: of one filter its largest square, of both that of A F⁻¹ R² F A, found on the host."""
    if freq is not None and space is not None:
        return float32(largest_eigenvalue(np.asarray(freq, np.float64), np.asarray(space, np.float64)))
    leaf = space if freq is None else freq
    return jnp.float32(1) if leaf is None else jnp.max(jnp.square(leaf))
