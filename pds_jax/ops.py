"""Small array operations used everywhere; images are NHWC and stay float32."""

from __future__ import annotations

import jax.numpy as jnp

from pds_jax.types import Array


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
    return jnp.fft.rfft2(x, axes=(1, 2))


def irfft2(spectrum: Array, shape: tuple[int, int]) -> Array:
    """Inverse of :func:`rfft2`.

    Args:
      spectrum: (B, H, W // 2 + 1, C) complex64.
      shape: (H, W), needed because W is ambiguous in the half plane.

    Returns:
      (B, H, W, C) float32.
    """
    return jnp.fft.irfft2(spectrum, s=shape, axes=(1, 2))
