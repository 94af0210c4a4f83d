"""Exact scores: laws of x_0 for which the score of x_t = m_t x_0 + std_t z is known in closed form.

Everything is written for x̄ = x/m_t, whose noise level is σ̄ = std_t/m_t, so that the three SDEs are one case; then
s(x, t) = (m_t D(x̄, σ̄) − x)/std_t² with the denoiser D(x̄, σ̄) = E[x_0 | x_t] (Tweedie's formula).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pds_jax import ops
from pds_jax.types import Array


def wiener_denoiser(x_bar: Array, level: Array, mean: Array, power: Array) -> Array:
    """E[x_0 | x̄] for Gaussian data diagonal in frequency: D = μ + F⁻¹[P/(P + σ̄²) ⊙ F(x̄ − μ)].

    Args:
      x_bar: (B, H, W, C) images with white noise.
      level: (B,) its standard deviation σ̄.
      mean: (H, W, C) μ.
      power: (H, W // 2 + 1, C) spectrum P; white noise of variance 1 has P = 1.

    Returns:
      (B, H, W, C) denoised images.
    """
    p = jnp.asarray(power)[None]
    gain = p / (p + jnp.square(level)[:, None, None, None])
    return jnp.asarray(mean)[None] + filtered(x_bar - jnp.asarray(mean)[None], gain)


def wiener_step(x_bar: Array, level: Array, mean: Array, power: Array) -> Array:
    """D − x̄ of :func:`wiener_denoiser`, without cancellation where there is little noise.

    Args and shapes as there; the score of x̄ is this over σ̄².
    """
    variance = jnp.square(level)[:, None, None, None]
    gain = variance / (jnp.asarray(power)[None] + variance)
    return -filtered(x_bar - jnp.asarray(mean)[None], gain)


def filtered(x: Array, gain: Array) -> Array:
    """F⁻¹[gain ⊙ F x] of x (B, H, W, C) for a real even gain, (B or 1, H, W // 2 + 1, C)."""
    spectrum = ops.rfft2(x)
    return ops.irfft2(jax.lax.complex(gain * spectrum.real, gain * spectrum.imag), (x.shape[1], x.shape[2]))


def plane_mean(half: Array, width: int) -> Array:
    """Mean over all frequencies and channels of an even function given on the half plane.

    Args:
      half: (..., H, W // 2 + 1, C).
      width: W.

    Returns:
      (...) means.
    """
    columns = half.shape[-2]
    weight = jnp.full((columns,), 2.0, jnp.float32).at[0].set(1.0)
    if width % 2 == 0:
        weight = weight.at[-1].set(1.0)
    axes = tuple(range(half.ndim - 3)) + (half.ndim - 3, half.ndim - 1)
    weighted = half * jnp.expand_dims(weight, axes)
    return jnp.sum(weighted, axis=(-3, -2, -1)) / (half.shape[-3] * half.shape[-1] * width)
