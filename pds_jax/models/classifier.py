"""A small convolutional classifier of images: features for a Fréchet distance, classes for a histogram."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from pds_jax.models.layerspp import GroupNorm
from pds_jax.types import Array, PdsError


class Classifier(nn.Module):
    """3x3 convolutions with ReLU, some followed by a 2x2 pool, a dense layer of features, logits.

    Attributes:
      widths: channels of the convolutions.
      pools: whether a pool follows each: the mean after ReLU, or with ``normalised`` the maximum before it.
      features: width of the dense layer.
      classes: number of logits.
      normalised: group normalisation before each ReLU.
      noise_conditional: the second argument is the noise level σ of the images; features of log σ are added and the
        images are scaled by (σ² + ¼)^(-1/2). For classifier guidance.
    """

    widths: tuple[int, ...] = (32, 64, 64)
    pools: tuple[bool, ...] = (False, True, False)
    features: int = 64
    classes: int = 10
    normalised: bool = False
    noise_conditional: bool = False

    @nn.compact
    def __call__(self, x: Array, sigma: Array | None = None) -> tuple[Array, Array]:
        """Logits (B, classes) and features (B, features) of images (B, H, W, C) in [0, 1], with noise of σ (B,)."""
        h = 2.0 * x - 1.0
        if self.noise_conditional:
            assert sigma is not None
            h = h / jnp.sqrt(jnp.square(sigma) + 0.25)[:, None, None, None]
        for number, (width, pool) in enumerate(zip(self.widths, self.pools, strict=True)):
            h = nn.Conv(width, (3, 3), name=f"conv_{number}")(h)
            if self.normalised:
                h = GroupNorm(name=f"norm_{number}")(_windows(h).max(axis=(2, 4)) if pool else h)
            h = nn.relu(h)
            if self.noise_conditional and number == 0:
                assert sigma is not None
                level = jnp.log(sigma)[:, None] * jnp.asarray([0.25, 0.5, 1.0, 2.0], jnp.float32)[None]
                embedding = nn.Dense(width, name="noise")(jnp.concatenate([jnp.sin(level), jnp.cos(level)], axis=-1))
                h = h + embedding[:, None, None, :]
            if pool and not self.normalised:
                h = jnp.mean(_windows(h), axis=(2, 4))
        features = nn.relu(nn.Dense(self.features, name="features")(h.reshape(h.shape[0], -1)))
        return nn.Dense(self.classes, name="logits")(features), features


def _windows(h: Array) -> Array:
    """(B, H, W, C) -> (B, H / 2, 2, W / 2, 2, C)."""
    return h.reshape(h.shape[0], h.shape[1] // 2, 2, h.shape[2] // 2, 2, h.shape[3])


def from_facts(facts: Mapping[str, Any]) -> Classifier:
    """The classifier that the config.json of a checkpoint describes; PdsError if it describes something else."""
    try:
        return Classifier(
            widths=tuple(facts["widths"]),
            pools=tuple(facts["pools"]),
            features=facts["features"],
            classes=facts["classes"],
            normalised=facts["normalised"],
            noise_conditional=facts["noise_conditional"],
        )
    except (KeyError, TypeError) as error:
        raise PdsError(f"config.json describes no classifier: {error!r}; train one by train_classifier.py") from error
