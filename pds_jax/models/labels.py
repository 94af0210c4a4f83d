"""Class labels as a network takes them: one row of numbers an image, one-hot where it has one class."""

from __future__ import annotations

import jax.numpy as jnp

from pds_jax.types import Array, PdsError


def label_rows(labels: Array | None, batch: int, width: int, what: str = "labels") -> Array:
    """Labels (batch, width) as float32; None becomes zeros, the networks' "no label".

    Raises PdsError for another shape, such as class numbers that were not made one-hot.
    """
    if labels is None:
        return jnp.zeros((batch, width), jnp.float32)
    if labels.shape != (batch, width):
        raise PdsError(
            f"{what} have shape {tuple(labels.shape)}; {batch} images need ({batch}, {width}), one-hot rows for classes"
        )
    return labels.astype(jnp.float32)
