"""The shipped digits classifier as a judge: features for a Fréchet distance, classes for a histogram."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pds_jax import checkpoints
from pds_jax.models.digits_classifier import CLASSES, FEATURES, DigitsClassifier
from pds_jax.types import Array, PdsError

_BATCH = 256


@dataclasses.dataclass(frozen=True)
class DigitsJudge:
    """A trained classifier of 8x8 digits.

    Attributes:
      params: its parameters.
      facts: its config.json, with the measured test accuracy.
    """

    params: Any
    facts: dict[str, Any]

    def features(self, images: np.ndarray) -> np.ndarray:
        """Penultimate features (n, 64) of images (n, 8, 8, 1) in [0, 1]."""
        return self._run(images)[1]

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Class probabilities (n, 10) of images (n, 8, 8, 1) in [0, 1]."""
        logits = self._run(images)[0].astype(np.float64)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    def classes(self, images: np.ndarray) -> np.ndarray:
        """Most probable class (n,) of images (n, 8, 8, 1) in [0, 1]."""
        return self._run(images)[0].argmax(axis=1)

    def _run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images = np.asarray(images, np.float32)
        if images.ndim != 4 or images.shape[1:] != (8, 8, 1):
            raise PdsError(f"the digits classifier judges images (n, 8, 8, 1), not {images.shape}")
        parts = []
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH]
            padded = np.concatenate([batch, np.zeros((_BATCH - len(batch), 8, 8, 1), np.float32)])
            parts.append([np.asarray(out)[: len(batch)] for out in _apply(self.params, padded)])
        if not parts:
            return np.zeros((0, CLASSES), np.float32), np.zeros((0, FEATURES), np.float32)
        logits, features = (np.concatenate(column) for column in zip(*parts, strict=True))
        return logits, features


@jax.jit
def _apply(params: Any, images: Array) -> tuple[Array, Array]:
    outputs: Any = DigitsClassifier().apply({"params": params}, jnp.asarray(images))
    return outputs


def features_and_logits(params: Any, images: Array) -> dict[str, Array]:
    """The judge as a pure function of its parameters and uint8 images (B, 8, 8, 1)."""
    logits, features = _apply(params, images.astype(jnp.float32) / 255.0)
    return {"features": features, "logits": jax.nn.log_softmax(logits)}


@functools.cache
def load() -> DigitsJudge:
    """The classifier that ships in checkpoints/digits_classifier.

    Raises:
      PdsError: it is not there or damaged.
    """
    params, facts = checkpoints.load_parameters(checkpoints.shipped_folder("digits_classifier"))
    return DigitsJudge(jax.tree.map(jnp.asarray, params), facts)


def noisy_logit_fn() -> Any:
    """The classifier of noised digits in checkpoints/digits_classifier_noisy, for class-conditional sampling.

    Trained on x_0 + σ n with log σ uniform in [log 0.01, log 4.8], x_0 in [0, 1].

    Returns:
      (x (B, 8, 8, 1), σ (B,)) -> logits (B, 10), a pytree; for ``controllable_generation.class_conditional``.

    Raises:
      PdsError: it is not there or damaged.
    """
    params, _ = checkpoints.load_parameters(checkpoints.shipped_folder("digits_classifier_noisy"))
    return jax.tree_util.Partial(_noisy_logits, jax.tree.map(jnp.asarray, params))


def _noisy_logits(params: Any, x: Array, sigma: Array) -> Array:
    logits, _ = DigitsClassifier(noise_conditional=True).apply({"params": params}, x, sigma)
    return logits
