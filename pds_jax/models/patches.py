"""Images as patches: the pixels of each small square as channels of one position, and back."""

from __future__ import annotations

from typing import Any

from pds_jax.types import Array, PdsError


def check_patch_size(size: Any) -> int:
    """The side of a patch, a whole number; PdsError if it is none, or below 1."""
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise PdsError(f"model.patch_size={size!r} must be a whole number of at least 1")
    return size


def to_patches(x: Array, size: int) -> Array:
    """Each size x size square of (B, H, W, C) as one position of (B, H / size, W / size, size² C)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // size, width // size, size * size * channels)


def from_patches(x: Array, size: int) -> Array:
    """Inverse of :func:`to_patches`: (B, h, w, size² C) to (B, h size, w size, C)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, size, size, channels // size**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height * size, width * size, channels // size**2)
