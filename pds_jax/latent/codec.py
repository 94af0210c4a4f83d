"""Images to latents and back, one image at a time, decoding in tiles where an image is large."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pds_jax.latent.autoencoder import Autoencoder
from pds_jax.types import Array, PdsError

OVERLAP = 0.25
_ENCODER_KEY = 1 << 20


@dataclasses.dataclass(frozen=True)
class Codec:
    """An autoencoder with its parameters, on images in [0, 1].

    Attributes:
      model: the autoencoder.
      params: its parameters.
      tile: latents along each axis that are decoded at once; None decodes whole images.
    """

    model: Autoencoder
    params: Any
    tile: int | None = None

    def __post_init__(self) -> None:
        if self.tile is not None and self.tile < 8:
            raise PdsError(f"tiles of {self.tile} latents are too small to decode; use at least 8, 64 for instance")

    def decode(self, latents: Any) -> np.ndarray:
        """Images (n, H, W, C) float32, about in [0, 1], of latents (n, h, w, c); one image after the other.

        With tiles, neighbours overlap by a quarter and fade into each other. A tile is normalised by itself, so the
        image differs from one decoded whole.
        """
        latents = np.asarray(latents, np.float32)
        whole = functools.partial(_decode, self.model, self.params)
        if self.tile is None:
            return np.concatenate([np.asarray(whole(one[None])) for one in latents])
        return np.stack([in_tiles(whole, one, self.tile, self.model.sizes.factor) for one in latents])

    def encode(self, images: Any, seeds: Iterable[int] | None = None) -> np.ndarray:
        """Latents (n, h, w, c) float32 of images (n, H, W, C) in [0, 1] or uint8.

        Args:
          images: as above; H and W multiples of the autoencoder's factor.
          seeds: one for each image, to draw from the encoder's law; None takes its mean.

        Raises:
          PdsError: sizes that the autoencoder cannot take.
        """
        images = np.asarray(images)
        factor, channels = self.model.sizes.factor, self.model.sizes.image_channels
        if images.ndim != 4 or images.shape[3] != channels or images.shape[1] % factor or images.shape[2] % factor:
            raise PdsError(
                f"the autoencoder takes images (n, H, W, {channels}) with H and W multiples of {factor}, "
                f"got {images.shape}; give an image size to crop and resize them to"
            )
        unit = images.astype(np.float32) / np.float32(255 if images.dtype == np.uint8 else 1)
        if seeds is None:
            return np.concatenate([np.asarray(_encode(self.model, self.params, one[None], None)) for one in unit])
        keys = (jax.random.fold_in(jax.random.key(_ENCODER_KEY, impl="threefry2x32"), seed) for seed in seeds)
        rows = [_encode(self.model, self.params, one[None], key) for one, key in zip(unit, keys, strict=True)]
        return np.concatenate([np.asarray(row) for row in rows])

    def decoder_bytes(self, size: tuple[int, int]) -> int:
        """Memory that decoding latents of size (h, w) takes beyond parameters, by the compiled program."""
        height, width = (min(side, self.tile or side) for side in size)
        latents = jax.ShapeDtypeStruct((1, height, width, self.model.sizes.code_channels), jnp.float32)
        found = _decode.lower(self.model, self.params, latents).compile().memory_analysis()
        return 0 if found is None else int(found.temp_size_in_bytes + found.output_size_in_bytes)


@functools.partial(jax.jit, static_argnums=0)
def _decode(model: Autoencoder, params: Any, latents: Array) -> Array:
    images: Any = model.apply({"params": params}, latents, method="decode")
    return images / 2 + 0.5


@functools.partial(jax.jit, static_argnums=0)
def _encode(model: Autoencoder, params: Any, images: Array, key: Array | None) -> Array:
    sizes = model.sizes
    shape = (1, images.shape[1] // sizes.factor, images.shape[2] // sizes.factor, sizes.code_channels)
    noise = None if key is None else jax.random.normal(key, shape, jnp.float32)
    latents: Any = model.apply({"params": params}, 2 * images - 1, noise, method="encode")
    return latents


def in_tiles(decode: Callable[[np.ndarray], Any], latents: np.ndarray, tile: int, factor: int) -> np.ndarray:
    """One image decoded tile by tile, each of the same size, blended by weights that fall off towards inner edges.

    Args:
      decode: latents (1, h', w', c) to an image (1, factor h', factor w', C).
      latents: (h, w, c).
      tile: h' and w', or the whole side where that is shorter.
      factor: pixels to a latent.
    """
    height, width = latents.shape[:2]
    total: np.ndarray | None = None
    weights = np.zeros((factor * height, factor * width, 1), np.float32)
    for top, bottom in spans(height, tile):
        for left, right in spans(width, tile):
            image = np.asarray(decode(latents[None, top:bottom, left:right]))[0]
            total = np.zeros((*weights.shape[:2], image.shape[2]), np.float32) if total is None else total
            place = slice(factor * top, factor * bottom), slice(factor * left, factor * right)
            weight = (
                _ramp(top, bottom, height, factor)[:, None, None] * _ramp(left, right, width, factor)[None, :, None]
            )
            total[place] += weight * image
            weights[place] += weight
    assert total is not None
    return total / weights


def spans(side: int, tile: int) -> Iterator[tuple[int, int]]:
    """Starts and ends of tiles of one size that cover a side and overlap by about a quarter or more."""
    if tile >= side:
        yield 0, side
        return
    count = 1 + math.ceil((side - tile) / max(int(tile * (1 - OVERLAP)), 1))
    for start in np.linspace(0, side - tile, count).round().astype(int):
        yield int(start), int(start) + tile


def _ramp(start: int, end: int, side: int, factor: int) -> np.ndarray:
    """Weights along one axis: rising over the overlap at an inner edge, 1 elsewhere."""
    length = factor * (end - start)
    overlap = max(int(length * OVERLAP), 1)
    place = np.arange(length, dtype=np.float32) + np.float32(0.5)
    weight = np.ones(length, np.float32)
    if start > 0:
        weight = np.minimum(weight, place / overlap)
    if end < side:
        weight = np.minimum(weight, place[::-1] / overlap)
    return weight
