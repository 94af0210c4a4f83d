"""Class labels as a network takes them: one row of numbers an image, one-hot where it has one class."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pds_jax.types import Array, Key, PdsError


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


def class_rows(module: Any, labels: Array | None, batch: int, train: bool) -> Array:
    """Labels (batch, label_dim) float32 of a network; in training each row is zero with probability label_dropout.

    ``module`` is the network, with ``label_dim`` and ``label_dropout``. Raises PdsError as :func:`label_rows`.
    """
    rows = label_rows(labels, batch, module.label_dim)
    if train and module.label_dropout:
        return drop_rows(rows, module.label_dropout, module.make_rng("dropout"))
    return rows


def drop_rows(rows: Array, rate: float, key: Key) -> Array:
    """Rows (B, width), each zero with probability ``rate``: label dropout, so that a network knows "no label" too."""
    kept = jax.random.bernoulli(key, 1 - rate, (rows.shape[0], 1))
    return jnp.where(kept, rows, jnp.zeros_like(rows))
