"""Small array operations used everywhere; images are NHWC and stay float32."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from pds_jax.types import Array

FFT_BYTES = 2**31  # of one transform; cuFFT aborts the process on plans of more than 4 GiB, work space included


def batch_mul(a: Array, x: Array) -> Array:
    """Scale each sample: y_b = a_b x_b.

    Args:
      a: (B,) one factor per sample.
      x: (B, ...) samples.

    Returns:
      (B, ...) scaled samples.
    """
    return a.reshape(a.shape + (1,) * (x.ndim - 1)) * x


def norms(x: Array) -> Array:
    """Euclidean norm of each sample, ‖x_b‖.

    Args:
      x: (B, ...) samples.

    Returns:
      (B,) norms.
    """
    return jnp.sqrt(jnp.sum(jnp.square(x.reshape(x.shape[0], -1)), axis=1))


def rfft2(x: Array) -> Array:
    """Real 2-D DFT over the spatial axes, unnormalised.

    Args:
      x: (B, H, W, C) float32.

    Returns:
      (B, H, W // 2 + 1, C) complex64 half plane of frequencies.
    """
    return _in_parts(lambda part: jnp.fft.rfft2(part, axes=(1, 2)), x)


def irfft2(spectrum: Array, shape: tuple[int, int]) -> Array:
    """Inverse of :func:`rfft2`.

    Args:
      spectrum: (B, H, W // 2 + 1, C) complex64.
      shape: (H, W), needed because W is ambiguous in the half plane.

    Returns:
      (B, H, W, C) float32.
    """
    return _in_parts(lambda part: jnp.fft.irfft2(part, s=shape, axes=(1, 2)), spectrum)


def half_plane_weights(width: int) -> np.ndarray:
    """How often each column of the half plane of :func:`rfft2` occurs in the full plane.

    Once for the zero frequency, and for W/2 if W is even; twice for the others, since k and −k share a column.

    Args:
      width: W.

    Returns:
      (W // 2 + 1,) float32.
    """
    weights = np.full(width // 2 + 1, 2.0, np.float32)
    weights[0] = 1.0
    if width % 2 == 0:
        weights[-1] = 1.0
    return weights


def _in_parts(transform: Callable[[Array], Array], x: Array) -> Array:
    """Transform as many images at once as FFT_BYTES hold; image by image the result is the same to rounding."""
    size = max(FFT_BYTES // max(8 * math.prod(x.shape[1:]), 1), 1)
    if x.shape[0] <= size:
        return transform(x)
    return jnp.concatenate([transform(x[start : start + size]) for start in range(0, x.shape[0], size)])
