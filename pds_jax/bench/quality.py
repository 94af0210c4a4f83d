"""Figures of merit that need no download: how near samples of a shipped model are to its data.

For fashion and landscapes, Fréchet distances in principal components and in the features of a classifier, classes and
the power spectrum, from a stored reference, without the data set; for digits, the Fréchet distance in the features of
a small classifier, classes and spectrum; for photos, the Fréchet distance in the principal components of patches,
sliced Wasserstein distance and spectrum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pds_jax.data import arrays, datasets, fashion_mnist, photographs
from pds_jax.metrics import frechet, simple
from pds_jax.types import PdsError, unknown_name

_CROPS = 4096


@dataclasses.dataclass(frozen=True)
class Judge:
    """Scores images against reference images.

    Attributes:
      reference: what the distances are measured to.
      scores: (n, H, W, C) images in [0, 1] -> name -> value; smaller is better.
      real: n, offset -> as many real images, to measure the floor.
      columns: the scores that a table of samplers shows -> their heads; empty for all.
      identity: of the reference and the classifier where a user gave them.
      held_out: what the scores named held_out are measured to; empty without.
    """

    reference: str
    scores: Callable[[np.ndarray], dict[str, float]]
    real: Callable[[int, int], np.ndarray]
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    identity: Mapping[str, str] = dataclasses.field(default_factory=dict)
    held_out: str = ""

    @property
    def reference_name(self) -> str:
        """Both references in words."""
        return f"{self.reference} (held_out: {self.held_out})" if self.held_out else self.reference

    def __call__(self, images: np.ndarray) -> dict[str, float]:
        """Score images (n, H, W, C), clipped to [0, 1] first, as they would be written."""
        return self.scores(np.clip(np.asarray(images, np.float32), 0.0, 1.0))

    def floor(self, count: int, repeats: int = 3) -> dict[str, float]:
        """Mean scores of sets of ``count`` real images: what a perfect sampler would get."""
        rows = [self(self.real(count, index * count)) for index in range(repeats)]
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def judge_for(name: str) -> Judge:
    """The judge of a data set with a shipped model.

    Args:
      name: "fashion", "landscapes", "photos" or "digits".

    Raises:
      PdsError: another name.
    """
    makers = {"fashion": _fashion, "landscapes": _landscapes, "photos": _photos, "digits": _digits}
    if name not in makers:
        raise PdsError(f"no figures of merit, use scripts/fid.py: {unknown_name('data set', name, sorted(makers))}")
    return makers[name]()


def _fashion() -> Judge:
    def real(count: int, offset: int) -> np.ndarray:
        images, _ = fashion_mnist.fashion("test")
        order = np.random.Generator(np.random.PCG64(0)).permutation(len(images))
        return arrays.to_unit(images[order[(np.arange(count) + offset) % len(images)]])

    return _stored(
        "fashion", "the {} training images", real, "the {} test images, of which the real images here are too"
    )


def _landscapes() -> Judge:
    return _stored(
        "landscapes",
        "{} crops of the training regions",
        lambda count, offset: photographs.landscapes("train", 64).images(np.arange(count) + 100_000 + offset),
        "{} crops of the right quarters, never trained on",
    )


def _stored(name: str, reference: str, real: Callable[[int, int], np.ndarray], held_out: str) -> Judge:
    """The judge in checkpoints/NAME_classifier; {} in ``reference`` and ``held_out`` becomes a number of images."""
    from pds_jax import checkpoints
    from pds_jax.bench import references
    from pds_jax.metrics import classifier_features

    stored = references.load(checkpoints.shipped_folder(f"{name}_classifier") / references.FILE)
    classifier = classifier_features.load(name)
    return Judge(
        reference.format(stored.record["train_images"]),
        lambda images: stored.scores(images, classifier),
        real,
        held_out=held_out.format(stored.record["held_out_images"]),
    )


def _photos() -> Judge:
    train = photographs.photos("train", 16)
    held_out = photographs.photos("test", 16).images(np.arange(_CROPS))
    law = train.images(np.arange(_CROPS))
    to_law, to_held_out = _component_distance(law), _component_distance(held_out)

    def scores(images: np.ndarray) -> dict[str, float]:
        return {
            "spectrum_error": simple.spectrum_error(images, law),
            "frechet": to_law(images),
            "frechet_held_out": to_held_out(images),
            "sliced_wasserstein": simple.sliced_wasserstein(images, law),
        }

    return Judge(
        f"{_CROPS} crops of the training regions",
        scores,
        lambda count, offset: train.images(np.arange(100_000 + offset, 100_000 + offset + count)),
        held_out="crops of the right quarters, never trained on",
    )


def _component_distance(reference: np.ndarray) -> Callable[[np.ndarray], float]:
    """``simple.patch_pca_frechet`` to one reference, whose components are found once."""
    pca = simple.PatchPCA.fit(reference)
    law = frechet.Gaussian.of_features(pca.features(reference), "reference")
    return lambda images: frechet.Gaussian.of_features(pca.features(images), "images").distance(law)


def _digits() -> Judge:
    from pds_jax.metrics import classifier_features

    train, _ = datasets.digits("train")
    held_out, labels = datasets.digits("test")
    classifier = classifier_features.load("digits")
    train_features, held_out_features = classifier.features(train), classifier.features(held_out)
    everything = np.concatenate([train, held_out])

    def scores(images: np.ndarray) -> dict[str, float]:
        features = classifier.features(images)
        histogram = np.bincount(classifier.classes(images), minlength=10) / len(images)
        return {
            "spectrum_error": simple.spectrum_error(images, everything),
            "frechet": simple.frechet_of_features(features, train_features),
            "frechet_held_out": simple.frechet_of_features(features, held_out_features),
            "class_error": float(0.5 * np.abs(histogram - np.bincount(labels, minlength=10) / len(labels)).sum()),
        }

    def real(count: int, offset: int) -> np.ndarray:
        order = np.random.Generator(np.random.PCG64(offset)).permutation(len(everything))
        return everything[order[:count]]

    return Judge("the 1500 training digits", scores, real, held_out="the other 297")


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of rows that share their keys; numbers get three significant digits."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(name.replace("_", " ") for name in columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row[name]) for name in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.4g}"
    return str(value)
