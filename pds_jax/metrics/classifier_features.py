"""The shipped classifiers as judges: features for a Fréchet distance, classes for a histogram."""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pds_jax import checkpoints
from pds_jax.models.classifier import Classifier, from_facts
from pds_jax.types import Array, PdsError

_BATCH = 256


@dataclasses.dataclass(frozen=True)
class ClassifierJudge:
    """A trained classifier.

    Attributes:
      model: the network.
      params: its parameters.
      shape: (H, W, C) of the images that it judges.
      facts: its config.json, with the measured test accuracy.
    """

    model: Classifier
    params: Any
    shape: tuple[int, int, int]
    facts: dict[str, Any]

    def features(self, images: np.ndarray) -> np.ndarray:
        """Penultimate features (n, D) of images (n, H, W, C) in [0, 1]."""
        return self.run(images)[1]

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Class probabilities (n, classes) of images (n, H, W, C) in [0, 1]."""
        logits = self.run(images)[0].astype(np.float64)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    def classes(self, images: np.ndarray) -> np.ndarray:
        """Most probable class (n,) of images (n, H, W, C) in [0, 1]."""
        return self.run(images)[0].argmax(axis=1)

    def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits and features of images.

        Args:
          images: (n, H, W, C) in [0, 1].

        Returns:
          Logits (n, classes) and features (n, D), float32.

        Raises:
          PdsError: images of another shape than the classifier's.
        """
        images = np.asarray(images, np.float32)
        if images.ndim != 4 or images.shape[1:] != self.shape:
            raise PdsError(f"this classifier judges images (n, *{self.shape}), not {images.shape}")
        parts = []
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH]
            padded = np.concatenate([batch, np.zeros((_BATCH - len(batch), *self.shape), np.float32)])
            parts.append([np.asarray(out)[: len(batch)] for out in _apply(self.model, self.params, padded)])
        if not parts:
            return np.zeros((0, self.model.classes), np.float32), np.zeros((0, self.model.features), np.float32)
        logits, features = (np.concatenate(column) for column in zip(*parts, strict=True))
        return logits, features

    def features_and_logits(self, params: Any, images: Array) -> dict[str, Array]:
        """The judge as a pure function of its parameters and uint8 images (B, H, W, C)."""
        logits, features = _apply(self.model, params, images.astype(jnp.float32) / 255.0)
        return {"features": features, "logits": jax.nn.log_softmax(logits)}


@functools.partial(jax.jit, static_argnums=0)
def _apply(model: Classifier, params: Any, images: Array) -> tuple[Array, Array]:
    outputs: Any = model.apply({"params": params}, jnp.asarray(images))
    return outputs


@functools.cache
def load(name: str) -> ClassifierJudge:
    """The classifier of a data set that ships in checkpoints/NAME_classifier: "digits", "fashion" or "landscapes".

    Raises:
      PdsError: its folder is missing, or a file in it is missing or damaged.
    """
    return from_folder(checkpoints.shipped_folder(f"{name}_classifier"))


def from_folder(folder: str | os.PathLike[str]) -> ClassifierJudge:
    """A classifier that scripts/train_classifier.py wrote.

    Args:
      folder: with model.safetensors and config.json.

    Returns:
      The classifier.

    Raises:
      PdsError: a file is missing or damaged.
    """
    params, facts = checkpoints.load_parameters(folder)
    model, shape = from_facts(facts), tuple(facts["shape"])
    return ClassifierJudge(model, jax.tree.map(jnp.asarray, params), (shape[0], shape[1], shape[2]), facts)


def noisy_logit_fn() -> Any:
    """The classifier of noised digits in checkpoints/digits_classifier_noisy, for class-conditional sampling.

    Trained on x_0 + σ n with log σ uniform in [log 0.01, log 4.8], x_0 in [0, 1].

    Returns:
      (x (B, 8, 8, 1), σ (B,)) -> logits (B, 10), a pytree; for ``controllable_generation.class_conditional``.

    Raises:
      PdsError: its folder is missing, or a file in it is missing or damaged.
    """
    params, facts = checkpoints.load_parameters(checkpoints.shipped_folder("digits_classifier_noisy"))
    return jax.tree_util.Partial(functools.partial(_noisy_logits, from_facts(facts)), jax.tree.map(jnp.asarray, params))


def _noisy_logits(model: Classifier, params: Any, x: Array, sigma: Array) -> Array:
    logits, _ = model.apply({"params": params}, x, sigma)
    return logits
