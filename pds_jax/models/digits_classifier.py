"""A small convolutional classifier of 8x8 digits: features for a Fréchet distance, classes for a histogram."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from pds_jax.types import Array

FEATURES = 64
CLASSES = 10


class DigitsClassifier(nn.Module):
    """Two 3x3 convolutions, a mean-pool, one 3x3 convolution, a dense layer of 64 features, 10 logits.

    Attributes:
      noise_conditional: the second argument is the noise level σ of the images; features of log σ are added and the
        images are scaled by (σ² + ¼)^(-1/2). For classifier guidance.
    """

    noise_conditional: bool = False

    @nn.compact
    def __call__(self, x: Array, sigma: Array | None = None) -> tuple[Array, Array]:
        """Classify images.

        Args:
          x: (B, 8, 8, 1) float32, digits in [0, 1] (plus noise).
          sigma: (B,) noise levels; only for the noise-conditional form.

        Returns:
          logits (B, 10) and the penultimate features (B, 64), after their ReLU.
        """
        h = 2.0 * x - 1.0
        if self.noise_conditional:
            assert sigma is not None
            h = h / jnp.sqrt(jnp.square(sigma) + 0.25)[:, None, None, None]
        h = nn.relu(nn.Conv(32, (3, 3), name="conv_0")(h))
        if self.noise_conditional:
            assert sigma is not None
            level = jnp.log(sigma)[:, None] * jnp.asarray([0.25, 0.5, 1.0, 2.0], jnp.float32)[None]
            embedding = nn.Dense(32, name="noise")(jnp.concatenate([jnp.sin(level), jnp.cos(level)], axis=-1))
            h = h + embedding[:, None, None, :]
        h = nn.relu(nn.Conv(64, (3, 3), name="conv_1")(h))
        h = jnp.mean(h.reshape(h.shape[0], h.shape[1] // 2, 2, h.shape[2] // 2, 2, h.shape[3]), axis=(2, 4))
        h = nn.relu(nn.Conv(64, (3, 3), name="conv_2")(h))
        features = nn.relu(nn.Dense(FEATURES, name="features")(h.reshape(h.shape[0], -1)))
        return nn.Dense(CLASSES, name="logits")(features), features
