"""Data seen as a Gaussian diagonal in frequency, N(μ, F⁻¹ P F): filters, its denoiser, its law at every noise level.

Everything is for x̄ = x/m_t, whose noise is white of deviation σ̄ = std_t/m_t: there the three SDEs are one case.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pds_jax import ops
from pds_jax.sde_lib import SDE
from pds_jax.types import Array

Moments = tuple[Array, Array]  # mean (H, W, C) and power (H, W // 2 + 1, C) in the model's range


def filtered(x: Array, gain: Array) -> Array:
    """F⁻¹[gain ⊙ F x] for a real even gain.

    Args:
      x: (B, H, W, C) float32.
      gain: (B or 1, H, W // 2 + 1, C).

    Returns:
      (B, H, W, C).
    """
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
    axes = (*range(half.ndim - 2), half.ndim - 1)
    total = jnp.sum(half * jnp.expand_dims(weight, axes), axis=(-3, -2, -1))
    return total / (half.shape[-3] * half.shape[-1] * width)


def noise_level(sde: SDE, t: Array) -> tuple[Array, Array]:
    """m_t and σ̄ = std_t/m_t at t (B,), both (B,); t = 0 stands for the data itself, with m = 1 and σ̄ = 0."""
    data = t <= 0
    m = jnp.where(data, jnp.float32(1), sde.mean_scale(t))
    return m, jnp.where(data, jnp.float32(0), sde.std(t) / m)


def per_mode(level: Array) -> Array:
    """(B,) -> (B, 1, 1, 1), to stand beside a spectrum."""
    return level[:, None, None, None]


def wiener_denoiser(x_bar: Array, level: Array, moments: Moments) -> Array:
    """E[x_0 | x̄] = μ + F⁻¹[P/(P + σ̄²) ⊙ F(x̄ − μ)] for Gaussian data.

    Args:
      x_bar: (B, H, W, C) images with white noise.
      level: (B,) its deviation σ̄.
      moments: mean μ (H, W, C) and power P (H, W // 2 + 1, C); white noise of variance 1 has P = 1.

    Returns:
      (B, H, W, C) denoised images.
    """
    mean, p = (jnp.asarray(v)[None] for v in moments)
    return mean + filtered(x_bar - mean, p / (p + jnp.square(per_mode(level))))


def wiener_step(x_bar: Array, level: Array, moments: Moments) -> Array:
    """D − x̄ of :func:`wiener_denoiser`, without cancellation where there is little noise; arguments as there.

    Divided by σ̄² this is the score of x̄.
    """
    mean, p = (jnp.asarray(v)[None] for v in moments)
    variance = jnp.square(per_mode(level))
    return -filtered(x_bar - mean, variance / (p + variance))


def matched_prior(z: Array, sde: SDE, t: Array, moments: Moments) -> Array:
    """A draw of N(m_t μ, m_t² P + std_t²): the law of Gaussian data at time t, where the standard prior has N(0, std²).

    Derived, see docs/theory.md.

    Args:
      z: (B, H, W, C) standard normal noise.
      sde: SDE.
      t: () time, usually the first of the grid.
      moments: mean and power.

    Returns:
      (B, H, W, C).
    """
    mean, power = (jnp.asarray(v) for v in moments)
    m, std = sde.mean_scale(t), sde.std(t)
    return (m * mean)[None] + filtered(z, jnp.sqrt(jnp.square(m) * power + jnp.square(std))[None])
