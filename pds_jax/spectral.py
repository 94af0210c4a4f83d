"""The Gaussian approximation of data, N(μ, F⁻¹ P F), diagonal in frequency: filters, denoiser, law at every level.

Everything is for x̄ = x/m_t, whose noise is white of deviation σ̄ = std_t/m_t: there the three SDEs are one case.
The channels may be rotated first, by an orthogonal basis (C, C): white noise stays white, and P is then that of each
rotated channel.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pds_jax import ops
from pds_jax.sde_lib import SDE
from pds_jax.types import Array

_HIGHEST = jax.lax.Precision.HIGHEST
# Mean (H, W, C) and power (H, W // 2 + 1, C) in the model's range; a third entry is the basis (C, C) of the power.
Moments = tuple[Array, ...]


def parts(moments: Moments) -> tuple[Array, Array, Array | None]:
    """Mean and power with a leading axis of 1, and the basis of the power, None for the channels as they are."""
    mean, power = (jnp.asarray(v)[None] for v in moments[:2])
    return mean, power, jnp.asarray(moments[2]) if len(moments) > 2 else None


def in_colours(power: np.ndarray, cross: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Power of the channels rotated to the eigenvectors of the pixels' colour covariance, and that basis U.

    P'_c = Σ_ij U_ic U_jc S_ij with S_ii the power and S_ij the cross-spectra; the covariance is the mean of S over all
    frequencies.

    Args:
      power: (H, W // 2 + 1, C).
      cross: (H, W // 2 + 1, C (C − 1)/2) Re S_ij for i < j.
      width: W.

    Returns:
      Power (H, W // 2 + 1, C) and basis (C, C), whose columns have falling variance.
    """
    channels = power.shape[-1]
    first, second = np.triu_indices(channels, 1)
    full = np.zeros((*power.shape[:2], channels, channels))
    full[..., first, second] = full[..., second, first] = cross
    full[..., np.arange(channels), np.arange(channels)] = power
    basis = np.linalg.eigh(np.einsum("hwij,w->ij", full, ops.half_plane_weights(width)))[1][:, ::-1]
    rotated = np.einsum("hwij,ic,jc->hwc", full, basis, basis)
    # Rounding may exceed the power of a colour that hardly occurs.
    floor = 1e-6 * power.mean(axis=-1, keepdims=True)
    return np.maximum(rotated, floor).astype(np.float32), basis.astype(np.float32)


def to_modes(x: Array, basis: Array | None = None) -> Array:
    """F of the channels, rotated where there is a basis; (B, H, W // 2 + 1, C) complex64 from x (B, H, W, C)."""
    return ops.rfft2(x if basis is None else jnp.matmul(x, basis, precision=_HIGHEST))


def from_modes(spectrum: Array, width: int, basis: Array | None = None) -> Array:
    """Inverse of :func:`to_modes`, for images of W = ``width``."""
    x = ops.irfft2(spectrum, (spectrum.shape[1], width))
    return x if basis is None else jnp.matmul(x, basis.T, precision=_HIGHEST)


def scaled(gain: Array, spectrum: Array) -> Array:
    """gain ⊙ spectrum for a real gain."""
    return jax.lax.complex(gain * spectrum.real, gain * spectrum.imag)


def filtered(x: Array, gain: Array, basis: Array | None = None) -> Array:
    """F⁻¹[gain ⊙ F x] for a real even gain.

    Args:
      x: (B, H, W, C) float32.
      gain: (B or 1, H, W // 2 + 1, C).
      basis: (C, C) of the channels that the gain is for.

    Returns:
      (B, H, W, C).
    """
    return from_modes(scaled(gain, to_modes(x, basis)), x.shape[2], basis)


def plane_mean(half: Array, width: int) -> Array:
    """Mean over all frequencies and channels of an even function given on the half plane.

    Args:
      half: (..., H, W // 2 + 1, C).
      width: W.

    Returns:
      (...) means.
    """
    weights = jnp.asarray(ops.half_plane_weights(width))[:, None]
    total = jnp.sum(half * jnp.broadcast_to(weights, half.shape), axis=(-3, -2, -1))
    return total / (half.shape[-3] * half.shape[-1] * width)


def noise_level(sde: SDE, t: Array) -> tuple[Array, Array]:
    """m_t and σ̄ = std_t/m_t at t (B,), both (B,); t = 0 stands for the data itself, with m = 1 and σ̄ = 0."""
    data = t <= 0
    m = jnp.where(data, jnp.float32(1), sde.mean_scale(t))
    return m, jnp.where(data, jnp.float32(0), sde.std(t) / m)


def per_mode(level: Array) -> Array:
    """(B,) -> (B, 1, 1, 1), to stand beside a spectrum."""
    return level[:, None, None, None]


def modewise(value: float | Array) -> Array:
    """A number, or an array (H, W // 2 + 1, C) with an axis of images in front; float32, to stand beside a spectrum."""
    array = jnp.asarray(value, jnp.float32)
    return array[None] if array.ndim == 3 else array


def wiener_denoiser(x_bar: Array, level: Array, moments: Moments) -> Array:
    """Wiener denoiser, the best linear one: E[x_0 | x̄] = μ + F⁻¹[P/(P + σ̄²) ⊙ F(x̄ − μ)] for Gaussian data.

    Args:
      x_bar: (B, H, W, C) images with white noise.
      level: (B,) its deviation σ̄.
      moments: mean μ (H, W, C) and power P (H, W // 2 + 1, C); white noise of variance 1 has P = 1.

    Returns:
      (B, H, W, C) denoised images.
    """
    mean, p, basis = parts(moments)
    return mean + filtered(x_bar - mean, p / (p + jnp.square(per_mode(level))), basis)


def wiener_step(x_bar: Array, level: Array, moments: Moments) -> Array:
    """D − x̄ of :func:`wiener_denoiser`, without cancellation where there is little noise; arguments as there.

    Divided by σ̄² this is the score of x̄.
    """
    mean, p, basis = parts(moments)
    variance = jnp.square(per_mode(level))
    return -filtered(x_bar - mean, variance / (p + variance), basis)


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
    mean, power, basis = parts(moments)
    m, std = sde.mean_scale(t), sde.std(t)
    return m * mean + filtered(z, jnp.sqrt(jnp.square(m) * power + jnp.square(std)), basis)
