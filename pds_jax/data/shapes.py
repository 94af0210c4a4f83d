"""The size of a configuration's images."""

from __future__ import annotations

from typing import Any

from pds_jax.types import PdsError


def image_size(config: Any) -> tuple[int, int]:
    """(H, W) of a configuration's images; ``data.image_size`` is one number or a pair.

    Raises:
      PdsError: neither.
    """
    size = config.data.image_size
    pair = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list | tuple) else ()
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise PdsError(f"data.image_size={size!r}: use one number, or (height, width)")
    return pair[0], pair[1]


def image_shape(config: Any) -> tuple[int, int, int]:
    """(H, W, C) of a configuration's images."""
    return (*image_size(config), int(config.data.num_channels))
