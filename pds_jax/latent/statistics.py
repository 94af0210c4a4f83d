"""Statistics of latents: through the encoder from images, or from what the model itself makes.

They are :class:`pds_jax.statistics.Statistics` of the latents z as the network sees them, in no range: μ, P, r_f and
r_a are those of z, and ``to_range(False)`` gives μ and P unchanged.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from pds_jax.latent.codec import Codec
from pds_jax.statistics import Statistics, Sums, accumulate, finalize
from pds_jax.types import PdsError

RANGE = "latents"
_accumulate = jax.jit(accumulate)


def latent_statistics(batches: Iterable[Any], source: Mapping[str, Any]) -> Statistics:
    """Statistics of latents.

    Args:
      batches: latents (B, h, w, c) float, each of any B.
      source: where they come from, for the provenance.

    Raises:
      PdsError: no latents, of different sizes, or not finite.
    """
    digest, total, shape = hashlib.sha256(), None, None
    for batch in batches:
        latents = np.asarray(batch, np.float32)
        if latents.ndim != 4 or (shape is not None and latents.shape[1:] != shape):
            raise PdsError(f"latents of shape {latents.shape} after some of {shape}; they must be of one size")
        if not np.isfinite(latents).all():
            raise PdsError("a latent holds NaN or infinity; statistics of it would be of no use")
        shape = latents.shape[1:]
        for one in latents:  # one program for any B
            digest.update(one.astype("<f4").tobytes())
            sums = _float64(_accumulate(one[None], np.ones(1, np.float32)))
            total = sums if total is None else jax.tree.map(np.add, total, sums)
    if total is None:
        raise PdsError("no latents were given; statistics need at least one (about 200 are enough for PDS)")
    made = finalize(total, images_sha256=digest.hexdigest(), channel_order=RANGE)
    return dataclasses.replace(made, provenance={**made.provenance, "data_range": RANGE, "source": dict(source)})


def _float64(sums: Sums) -> Sums:
    found: Sums = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), sums)
    return found


def encoded(images: Iterable[Any], codec: Codec) -> Iterator[np.ndarray]:
    """Latents of batches of images (B, H, W, C), uint8 or in [0, 1], drawn from the encoder's law, seeds by index."""
    first = 0
    for batch in images:
        yield codec.encode(batch, range(first, first + len(batch)))
        first += len(batch)


def check_statistics(statistics: Statistics, name: str) -> Statistics:
    """Refuse statistics of images where those of latents are needed.

    Raises:
      PdsError: says how to make them.
    """
    if statistics.provenance.get("data_range") != RANGE:
        raise PdsError(
            f"{name} holds statistics of images, a latent model needs those of its latents: make them with "
            "scripts/latent_statistics.py --checkpoint=FOLDER --images=FOLDER"
        )
    return statistics
