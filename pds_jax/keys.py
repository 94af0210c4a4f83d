"""One random key per image, and the draws from it.

The generator is named, so that images do not depend on JAX's default (``JAX_DEFAULT_PRNG_IMPL``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pds_jax.types import Array, Key, PdsError

GENERATOR = "threefry2x32"


def generator() -> contextlib.AbstractContextManager[Any]:
    """Compile what draws inside it with the partitionable form of the generator, whatever JAX's setting is.

    Returns:
      A context manager.
    """
    return jax.threefry_partitionable(True)


def use_generator() -> None:
    """Make the named generator JAX's own in this process, for programs that nothing else shares it with."""
    jax.config.update("jax_default_prng_impl", GENERATOR)
    jax.config.update("jax_threefry_partitionable", True)


def make_key(seed: int) -> Key:
    """A key of the named generator.

    Args:
      seed: integer.

    Returns:
      () typed key.
    """
    return jax.random.key(seed, impl=GENERATOR)


def checked_seeds(seeds: Any) -> np.ndarray:
    """Seeds of images, checked.

    Args:
      seeds: (B,) whole numbers from 0 to 2³² − 1.

    Returns:
      (B,) uint32.

    Raises:
      PdsError: not a list of whole numbers, or one out of range.
    """
    try:
        found = np.asarray(seeds)
    except (ValueError, OverflowError):
        found = np.asarray(None)
    whole = found.ndim == 1 and (found.dtype.kind in "iu" or not found.size)
    if not whole or np.any(found < 0) or np.any(found >= 2**32):
        raise PdsError(f"seeds={str(seeds)[:80]}: give whole numbers from 0 to 2^32 - 1, one an image, e.g. range(16)")
    return found.astype(np.uint32)


def image_keys(seeds: Sequence[int] | np.ndarray, seed: int = 0) -> Key:
    """One key per image, fold_in(key(seed), s) for each s of ``seeds``.

    Args:
      seeds: (B,) whole numbers from 0 to 2³² − 1, one an image.
      seed: of all images.

    Returns:
      (B,) typed keys.

    Raises:
      PdsError: ``seeds`` is not a list of whole numbers, or one is out of range.
    """
    with generator():
        return fold_in(make_key(seed), jnp.asarray(checked_seeds(seeds)))


def typed(keys: Key) -> Key:
    """Keys of images as typed keys.

    Args:
      keys: (B,) typed keys, or (B, 2) uint32 as from ``jax.random.PRNGKey``.

    Returns:
      (B,) typed keys.

    Raises:
      PdsError: not keys, or one key instead of a batch.
    """
    if not hasattr(keys, "dtype"):
        raise PdsError(f"keys must be an array of keys, one an image (sampling.image_keys), not {type(keys).__name__}")
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
        if keys.dtype != jnp.uint32 or keys.ndim not in (1, 2) or keys.shape[-1] != 2:
            raise PdsError(f"keys must be typed keys (B,) or old-style keys (B, 2), not {keys.dtype} {keys.shape}")
        keys = jax.random.wrap_key_data(keys, impl=GENERATOR)
    if keys.ndim != 1:
        raise PdsError("keys must be one an image: sampling.image_keys(range(16)), or jax.random.split(key, 16)")
    return keys


def fold_in(keys: Key, data: Any) -> Key:
    """``jax.random.fold_in`` for a batch of keys, of data, or of both.

    Args:
      keys: (B,) or () typed keys.
      data: (B,) or () int32; at least one of the two has the axis B.

    Returns:
      (B,) typed keys.
    """
    axes = (0 if keys.ndim else None, 0 if jnp.ndim(data) else None)
    return jax.vmap(jax.random.fold_in, axes)(keys, data)


def normal(keys: Key, step: Any, draw: Any, shape: tuple[int, int, int]) -> Array:
    """Standard normal noise of each image, a function of its key, the iteration and the number of the draw.

    Args:
      keys: (B,) typed keys.
      step: () int32, number of the iteration.
      draw: () int32, number of the draw in it.
      shape: (H, W, C).

    Returns:
      (B, H, W, C) float32.
    """
    drawn = fold_in(fold_in(keys, step), draw)
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(drawn)
