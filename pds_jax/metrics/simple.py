"""Distances between small images without a trained network: spectrum, sliced Wasserstein, patch PCA, random features.

They compare samplers on one data set; they are not comparable between data sets, nor with FID. All are deterministic
(fixed seeds) and computed in float64; every one has a finite-sample floor above zero, so quote it beside the value.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pds_jax.metrics.frechet import frechet_distance_from_features
from pds_jax.ops import half_plane_weights
from pds_jax.types import Array, PdsError

_CHUNK = 256
_PIXELS = 2**20  # in a chunk of features
_TINY = 1e-12
_LAYOUT = 64


def power_spectrum(images: Any) -> np.ndarray:
    """Power spectrum about the images' own mean, P(k) = mean_n |F[x_n − μ]|² / (H W); white noise of variance 1 has 1.

    Args:
      images: (n, H, W, C).

    Returns:
      (H, W // 2 + 1, C) float64.

    Raises:
      PdsError: not images, or values that are not finite.
    """
    x = _checked(images, "images")
    total = np.zeros((x.shape[1], x.shape[2] // 2 + 1, x.shape[3]))
    mean = x.mean(axis=0, dtype=np.float64)
    for start in range(0, len(x), _CHUNK):
        total += np.square(np.abs(np.fft.rfft2(x[start : start + _CHUNK] - mean, axes=(1, 2)))).sum(axis=0)
    return total / (len(x) * x.shape[1] * x.shape[2])


def radial_spectrum(power: Any, width: int) -> np.ndarray:
    """Average of a power spectrum over channels and over rings of equal |k|.

    Ring j holds round(|k| · min(H, W)) = j, |k| in cycles per pixel, up to the corners; empty rings are left out.

    Args:
      power: (H, W // 2 + 1, C) half plane.
      width: W.

    Returns:
      (rings,) float64, from the zero frequency outwards.
    """
    rings, weights = _rings(len(power), width)
    mean = np.asarray(power, np.float64).mean(axis=2)
    total, count = np.bincount(rings, (weights * mean).ravel()), np.bincount(rings, weights.ravel())
    return total[count > 0] / count[count > 0]


def spectrum_error(images: Any, reference: Any) -> float:
    """Root mean square, over rings of |k|, of log P_images − log P_reference (natural logarithm).

    0.1 means that powers are off by about 10 %. P is taken about each set's own mean, so a wrong mean is not seen.

    Args:
      images: (n, H, W, C) samples.
      reference: (m, H, W, C) images, or their power spectrum (H, W // 2 + 1, C).

    Returns:
      The error, ≥ 0.

    Raises:
      PdsError: shapes differ, or values that are not finite.
    """
    power = power_spectrum(images)
    width = np.shape(images)[2]
    target = power_spectrum(reference) if np.ndim(reference) == 4 else np.asarray(reference, np.float64)
    if target.shape != power.shape or (np.ndim(reference) == 4 and np.shape(reference)[2] != width):
        raise PdsError(f"images {np.shape(images)} cannot be compared with a reference {np.shape(reference)}")
    ours, theirs = (np.log(np.maximum(radial_spectrum(p, width), _TINY)) for p in (power, target))
    return float(np.sqrt(np.mean(np.square(ours - theirs))))


def sliced_wasserstein(images: Any, reference: Any, projections: int = 256, seed: int = 0) -> float:
    """Sliced Wasserstein-2 distance of pixel vectors, √(mean_θ W₂²(θ·x, θ·y)) over random unit vectors θ.

    W₂² = ∫ (F_x⁻¹(u) − F_y⁻¹(u))² du, exact for sets of any two sizes: both quantile functions are steps.

    Args:
      images: (n, H, W, C).
      reference: (m, H, W, C).
      projections: number of θ.
      seed: of the projections.

    Returns:
      The distance, in units of one pixel's range, ≥ 0.

    Raises:
      PdsError: shapes differ, or values that are not finite.

    Source: Rabin et al., "Wasserstein Barycenter and its Application to Texture Mixing" (2011).
    """
    x, y = _rows(images, reference)
    directions = np.random.Generator(np.random.PCG64(seed)).standard_normal((x.shape[1], projections))
    directions /= np.linalg.norm(directions, axis=0)
    # Where either function steps, in units of 1/(n m).
    edges = np.union1d(np.arange(len(x) + 1) * len(y), np.arange(len(y) + 1) * len(x))
    a = np.sort(x @ directions, axis=0)[edges[:-1] // len(y)]
    b = np.sort(y @ directions, axis=0)[edges[:-1] // len(x)]
    return float(np.sqrt(np.mean(np.diff(edges) / edges[-1] @ np.square(a - b))))


_RANK = 1e-6  # of the largest singular value, or of 1; those below are rounding


@dataclasses.dataclass(frozen=True)
class PatchPCA:
    """Coordinates along the first principal components of reference images.

    Attributes:
      mean: (D,) mean of the reference's pixels.
      basis: (D, d) components, the largest first.
    """

    mean: np.ndarray
    basis: np.ndarray

    @classmethod
    def fit(cls, reference: Any, dims: int = 64) -> PatchPCA:
        """Components of reference images.

        Args:
          reference: (m, H, W, C).
          dims: number of components d; fewer where pixels or images are fewer.

        Returns:
          Mean and components.

        Raises:
          PdsError: not images, or values that are not finite.
        """
        y = _checked(reference, "reference images")
        y = y.reshape(len(y), -1).astype(np.float64)
        mean, dims = y.mean(axis=0), min(dims, len(y) - 1)
        y -= mean
        if len(y) >= y.shape[1]:
            return cls(mean, np.linalg.eigh(y.T @ y)[1][:, ::-1][:, :dims])
        # Fewer images than pixels: the same components from the images' products, in less time and memory.
        basis = y.T @ np.linalg.eigh(y @ y.T)[1][:, ::-1][:, :dims]
        norms = np.linalg.norm(basis, axis=0)
        known = norms > _RANK * max(norms.max(), 1.0)  # equal images span fewer directions; the others are 0
        return cls(mean, np.where(known, basis / np.where(known, norms, 1.0), 0.0))

    def features(self, images: Any) -> np.ndarray:
        """Coordinates of images.

        Args:
          images: (n, H, W, C).

        Returns:
          (n, d) float64.

        Raises:
          PdsError: not images, or values that are not finite.
        """
        x = _checked(images, "images")
        return (x.reshape(len(x), -1).astype(np.float64) - self.mean) @ self.basis


def patch_pca_frechet(images: Any, reference: Any, dims: int = 64) -> float:
    """Squared Fréchet distance of the first principal components of the reference's pixels.

    Components are neither whitened nor scaled, so it weighs frequencies as the eye's energy does and hardly sees weak
    noise outside the subspace: read it beside :func:`spectrum_error`.

    Args:
      images: (n, H, W, C).
      reference: (m, H, W, C), which also defines the components.
      dims: number of components; fewer where pixels or images are fewer.

    Returns:
      d², in squared pixel units.

    Raises:
      PdsError: shapes differ, values that are not finite, or fewer than two images.
    """
    _rows(images, reference)
    pca = PatchPCA.fit(reference, dims)
    return frechet_distance_from_features(pca.features(images), pca.features(reference))


def random_conv_features(images: Any, dims: int = 64, seed: int = 0) -> np.ndarray:
    """Features of a fixed random convolutional network: 3x3 conv, ReLU, 3x3 conv of stride 2, ReLU, mean over pixels.

    Weights are normal with variance 2 / fan-in; inputs are mapped to [-1, 1]. Untrained features still see colours,
    edges and textures, and a Fréchet distance of them needs no download.

    Args:
      images: (n, H, W, C) in [0, 1].
      dims: number of features.
      seed: of the weights.

    Returns:
      (n, dims) float64.

    Raises:
      PdsError: not images, or values that are not finite.
    """
    x = _checked(images, "images")
    weights = _random_weights(x.shape[3], dims, seed)
    blocks = []
    size = max(1, min(_CHUNK, _PIXELS // math.prod(x.shape[1:3])))
    for start in range(0, len(x), size):
        block = np.asarray(x[start : start + size], np.float32)
        padded = np.concatenate([block, np.zeros((size - len(block), *block.shape[1:]), np.float32)])
        blocks.append(np.asarray(_random_network(*weights, padded), np.float64)[: len(block)])
    return np.concatenate(blocks)


def random_conv_frechet(images: Any, reference: Any) -> float:
    """Squared Fréchet distance of :func:`random_conv_features`.

    Args:
      images: (n, H, W, C) in [0, 1].
      reference: (m, H, W, C) in [0, 1].

    Returns:
      d².

    Raises:
      PdsError: not images, values that are not finite, or fewer than two images.
    """
    return frechet_distance_from_features(random_conv_features(images), random_conv_features(reference))


def distance_from(reference: Any) -> Callable[[Any], float]:
    """A distance to reference images that sees layout, texture and spectrum: (d²_c d²_r e)^{1/3}, for any units.

    d²_c is :func:`patch_pca_frechet` of the images averaged over boxes to at most 64 pixels, whose components are the
    low frequencies, d²_r is :func:`random_conv_frechet`, and e is the :func:`spectrum_error`. Derived.

    Args:
      reference: (m, H, W, C).

    Returns:
      images (n, H, W, C) -> the geometric mean of the three.

    Raises:
      PdsError: values that are not finite, now or then; then also another shape, or fewer than two images.
    """
    pca, texture = PatchPCA.fit(_averaged(reference)), random_conv_features(reference)
    layout, power = pca.features(_averaged(reference)), power_spectrum(reference)

    def distance(images: Any) -> float:
        _rows(images[:1], reference[:1])
        of_layout = frechet_distance_from_features(pca.features(_averaged(images)), layout)
        of_texture = frechet_distance_from_features(random_conv_features(images), texture)
        return float(np.cbrt(max(of_layout, 0.0) * max(of_texture, 0.0) * spectrum_error(images, power)))

    return distance


def _averaged(images: Any) -> np.ndarray:
    """Images (n, H, W, C) averaged over the boxes that leave at most 64 pixels a side; the rest of the edge is cut."""
    x = _checked(images, "images")
    tall, wide = (-(-side // _LAYOUT) for side in x.shape[1:3])
    x = x[:, : x.shape[1] // tall * tall, : x.shape[2] // wide * wide]
    blocks = x.reshape(len(x), x.shape[1] // tall, tall, x.shape[2] // wide, wide, x.shape[3])
    return np.asarray(blocks.mean(axis=(2, 4)))


def frechet_of_features(features: Any, reference: Any) -> float:
    """Squared Fréchet distance of any features.

    Args:
      features: (n, D), n ≥ 2.
      reference: (m, D), m ≥ 2.

    Returns:
      d², see ``metrics.frechet``.

    Raises:
      PdsError: fewer than two rows, other widths, or values that are not finite.
    """
    return frechet_distance_from_features(features, reference)


def _checked(images: Any, what: str) -> np.ndarray:
    x = np.asarray(images)
    if x.ndim != 4 or len(x) == 0:
        raise PdsError(f"{what} have shape {x.shape}; expected (n, H, W, C) with n >= 1")
    if not np.isfinite(x).all():
        row = int(np.argmin(np.isfinite(x).reshape(len(x), -1).all(axis=1)))
        raise PdsError(f"{what}: image {row} holds NaN or infinity (did the sampler diverge?)")
    return x


def _rows(images: Any, reference: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both sets as rows of float64 pixels."""
    x, y = _checked(images, "images"), _checked(reference, "reference images")
    if x.shape[1:] != y.shape[1:]:
        raise PdsError(f"images {x.shape} cannot be compared with reference images {y.shape}")
    return x.reshape(len(x), -1).astype(np.float64), y.reshape(len(y), -1).astype(np.float64)


@functools.lru_cache(maxsize=8)
def _rings(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Ring of every half-plane frequency, flat, and how often it counts in the full plane."""
    vertical, horizontal = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    rings = np.round(np.hypot(vertical, horizontal) * min(height, width)).astype(int)
    return rings.ravel(), np.broadcast_to(half_plane_weights(width), rings.shape)


def _random_weights(channels: int, dims: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.Generator(np.random.PCG64(seed))
    shapes = (3, 3, channels, dims), (3, 3, dims, dims)
    first, second = (rng.standard_normal(s) * np.sqrt(2.0 / (9 * s[2])) for s in shapes)
    return first.astype(np.float32), second.astype(np.float32)


@jax.jit
def _random_network(first: Array, second: Array, images: Array) -> Array:
    conv = functools.partial(
        jax.lax.conv_general_dilated,
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
    hidden = jax.nn.relu(conv(2 * images - 1, first, window_strides=(1, 1)))
    return jnp.mean(jax.nn.relu(conv(hidden, second, window_strides=(2, 2))), axis=(1, 2))
