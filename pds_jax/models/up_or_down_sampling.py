"""Resampling by finite impulse response (FIR) filters, written from the definition of upfirdn.

upfirdn(x; k, u, d, p): insert u - 1 zeros after every sample, pad by p = (p₀, p₁), convolve with k, keep every
d-th sample. The zeros are never stored: each output phase is a short sum of shifted copies of x (the polyphase
form), which XLA fuses into one elementwise pass. Kernels are separable, k ⊗ k, so rows and columns go one by one.
Padding is with zeros, and k is normalised to unit sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from pds_jax.types import Array, PdsError

Kernel = Sequence[float] | None
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def fir_taps(kernel: Kernel, factor: int, gain: float = 1.0) -> np.ndarray:
    """Taps of one axis, k / Σk · gain; None is the box of length ``factor``.

    Args:
      kernel: (K,) taps before normalisation.
      factor: resampling factor.
      gain: sum of the returned taps.

    Returns:
      (K,) float64 taps.

    Raises:
      PdsError: if the kernel is not a list of numbers with a sum other than 0.
    """
    taps = np.ones(factor) if kernel is None else np.asarray(kernel, np.float64)
    if taps.ndim != 1 or taps.size == 0 or not np.isfinite(taps).all() or taps.sum() == 0:
        raise PdsError(f"fir_kernel must be a 1-D list of finite taps with a sum other than 0, got {kernel!r}")
    return taps * (gain / taps.sum())


def _shifted_sum(x: Array, terms: list[tuple[int, float]], axis: int, length: int, stride: int) -> Array:
    """Σ_(s,c) c · x[stride·n + s] for n < length, x being 0 outside its range."""
    size = x.shape[axis]
    left = max(0, -min(s for s, _ in terms))
    right = max(0, stride * (length - 1) + max(s for s, _ in terms) - (size - 1))
    pads = [(0, 0)] * x.ndim
    pads[axis] = (left, right)
    x = jnp.pad(x, pads)
    parts = []
    for shift, tap in terms:
        start = shift + left
        stop = start + stride * (length - 1) + 1
        parts.append(lax.slice_in_dim(x, start, stop, stride, axis) * float(tap))
    return sum(parts[1:], parts[0])


def upfirdn1d(
    x: Array, taps: np.ndarray, axis: int, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)
) -> Array:
    """Upsample by ``up``, filter, downsample by ``down`` along one axis: y = ↓d (k ∗ pad(↑u x)).

    Args:
      x: (...) samples, length L along ``axis``.
      taps: (K,) filter k.
      axis: the axis.
      up: zeros are inserted so that L becomes L·up.
      down: every ``down``-th sample is kept.
      pad: zeros added before and after, after the insertion.

    Returns:
      x with length ceil((L·up + pad₀ + pad₁ - K + 1) / down) along ``axis``, of x's dtype.
    """
    axis %= x.ndim
    flipped = taps[::-1]
    total = -(-(x.shape[axis] * up + sum(pad) - len(taps) + 1) // down)
    # Output n = up·i + r reads the padded signal at down·n + j, which holds x[m] where down·n + j - pad₀ = up·m.
    phases = []
    for r in range(up):
        terms = [
            ((down * r + j - pad[0]) // up, float(tap))
            for j, tap in enumerate(flipped)
            if (down * r + j - pad[0]) % up == 0 and tap != 0
        ]
        length = -(-total // up)
        phases.append(_shifted_sum(x, terms or [(0, 0.0)], axis, length, down))
    if up == 1:
        return phases[0]
    y = jnp.stack(phases, axis + 1)
    shape = x.shape[:axis] + (up * phases[0].shape[axis],) + x.shape[axis + 1 :]
    return lax.slice_in_dim(y.reshape(shape), 0, total, axis=axis)


def upfirdn2d(x: Array, taps: np.ndarray, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)) -> Array:
    """:func:`upfirdn1d` along rows and columns of images, with the separable kernel k ⊗ k.

    Args:
      x: (B, H, W, C).
      taps: (K,).
      up: see :func:`upfirdn1d`.
      down: see :func:`upfirdn1d`.
      pad: see :func:`upfirdn1d`, the same for both axes.

    Returns:
      (B, H', W', C).
    """
    return upfirdn1d(upfirdn1d(x, taps, 1, up, down, pad), taps, 2, up, down, pad)


def upsample_2d(x: Array, k: Kernel = None, factor: int = 2) -> Array:
    """FIR upsampling that keeps the signal's amplitude.

    Args:
      x: (B, H, W, C).
      k: (K,) taps, normalised here; None is nearest neighbour.
      factor: integer factor.

    Returns:
      (B, factor·H, factor·W, C).
    """
    taps = fir_taps(k, factor, gain=factor)
    p = len(taps) - factor
    return upfirdn2d(x, taps, up=factor, pad=((p + 1) // 2 + factor - 1, p // 2))


def downsample_2d(x: Array, k: Kernel = None, factor: int = 2) -> Array:
    """FIR downsampling that keeps the signal's mean.

    Args:
      x: (B, H, W, C).
      k: (K,) taps, normalised here; None is the box average.
      factor: integer factor.

    Returns:
      (B, H / factor, W / factor, C).
    """
    taps = fir_taps(k, factor)
    p = len(taps) - factor
    return upfirdn2d(x, taps, down=factor, pad=((p + 1) // 2, p // 2))


def upsample_conv_2d(x: Array, w: Array, k: Kernel = None, factor: int = 2) -> Array:
    """Upsampling and convolution in one: zero insertion, correlation with w, FIR filter.

    Args:
      x: (B, H, W, C).
      w: (K, K, C, D) kernel.
      k: taps of the filter, normalised here; None is nearest neighbour.
      factor: integer factor.

    Returns:
      (B, factor·H, factor·W, D).
    """
    size = w.shape[0]
    taps = fir_taps(k, factor, gain=factor)
    p = (len(taps) - factor) - (size - 1)
    full = [(size - 1, size - 1)] * 2
    y = lax.conv_general_dilated(x, w, (1, 1), full, lhs_dilation=(factor, factor), dimension_numbers=_DIMENSIONS)
    return upfirdn2d(y, taps, pad=((p + 1) // 2 + factor - 1, p // 2 + 1))


def conv_downsample_2d(x: Array, w: Array, k: Kernel = None, factor: int = 2) -> Array:
    """FIR filter, then a convolution with stride ``factor``.

    Args:
      x: (B, H, W, C).
      w: (K, K, C, D) kernel.
      k: taps of the filter, normalised here; None is the box average.
      factor: integer factor.

    Returns:
      (B, H / factor, W / factor, D).
    """
    taps = fir_taps(k, factor)
    p = (len(taps) - factor) + (w.shape[0] - 1)
    y = upfirdn2d(x, taps, pad=((p + 1) // 2, p // 2))
    return lax.conv_general_dilated(y, w, (factor, factor), "VALID", dimension_numbers=_DIMENSIONS)


def naive_upsample_2d(x: Array, factor: int = 2) -> Array:
    """Repeat every pixel.

    Args:
      x: (B, H, W, C).
      factor: integer factor.

    Returns:
      (B, factor·H, factor·W, C).
    """
    b, h, w, c = x.shape
    y = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, factor, w, factor, c))
    return y.reshape(b, h * factor, w * factor, c)


def naive_downsample_2d(x: Array, factor: int = 2) -> Array:
    """Average blocks of pixels.

    Args:
      x: (B, H, W, C), H and W multiples of factor.
      factor: integer factor.

    Returns:
      (B, H / factor, W / factor, C).
    """
    b, h, w, c = x.shape
    return x.reshape(b, h // factor, factor, w // factor, factor, c).mean(axis=(2, 4))
