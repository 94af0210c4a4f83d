"""The bilinear resizes in front of the Inception network; FID changes by whole points with the wrong one.

``tf1``: TensorFlow 1.x's ``resize_bilinear``: corner origin, no antialiasing. The original FID and torch-fidelity.
``half_pixel``: pixel centres at i + ½, no antialiasing. pytorch-fid.

Both blend along x first, then along y, in float32. tf1 follows the original's order of operations bit for bit (outside
``jit``, where XLA may fuse a product and a sum: 2e-7 relative); half_pixel agrees with PyTorch to 4e-7.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from pds_jax.types import Array, PdsError, unknown_name

RULES = ("tf1", "half_pixel")


def sample_positions(n: int, size: int, rule: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each output pixel of one axis reads.

    tf1: p_i = i · (n/size); half_pixel: p_i = max(0, (i + ½) · (n/size) − ½); float32 throughout.

    Args:
      n: input pixels.
      size: output pixels.
      rule: "tf1" or "half_pixel".

    Returns:
      lo (size,) = ⌊p⌋, hi (size,) = min(lo + 1, n − 1), both int32, and the weight of hi, p − lo, float32.

    Raises:
      PdsError: unknown rule.
    """
    scale = np.float32(n / size)
    index = np.arange(size, dtype=np.float32)
    if rule == "tf1":
        position = index * scale
    elif rule == "half_pixel":
        half = np.float32(0.5)
        position = np.maximum((index + half) * scale - half, np.float32(0.0))
    else:
        raise PdsError(unknown_name("resize rule", rule, RULES))
    low = np.minimum(np.floor(position).astype(np.int32), np.int32(n - 1))
    high = np.minimum(low + np.int32(1), np.int32(n - 1))
    return low, high, position - low.astype(np.float32)


def resize_bilinear(images: Any, size: tuple[int, int] = (299, 299), rule: str = "tf1") -> Array:
    """Resize without antialiasing, aspect ratio not kept.

    Along x, then along y: v(p) = v[lo] + (v[hi] − v[lo]) (p − lo) for tf1, (1 − d) v[lo] + d v[hi] for half_pixel.

    Args:
      images: (B, H, W, C) uint8 or float, any range.
      size: output (height, width) in pixels.
      rule: "tf1" or "half_pixel", see :func:`sample_positions`.

    Returns:
      (B, *size, C) float32 in the range of the input; at the same size the input itself.

    Raises:
      PdsError: unknown rule or an empty image.

    Source: definition of TensorFlow 1.x resize_bilinear, and of PyTorch's interpolate(align_corners=False).
    """
    pixels = jnp.asarray(images).astype(jnp.float32)
    if pixels.ndim != 4 or 0 in pixels.shape[1:]:
        raise PdsError(f"images of shape {pixels.shape} cannot be resized; expected (B, H, W, C)")
    pixels = _blend(pixels, 2, size[1], rule)
    return _blend(pixels, 1, size[0], rule)


def _blend(pixels: Array, axis: int, size: int, rule: str) -> Array:
    low, high, weight = sample_positions(pixels.shape[axis], size, rule)
    shape = [1] * 4
    shape[axis] = size
    d = jnp.asarray(weight.reshape(shape))
    left, right = jnp.take(pixels, low, axis=axis), jnp.take(pixels, high, axis=axis)
    if rule == "tf1":
        return left + (right - left) * d
    return (1.0 - d) * left + d * right
