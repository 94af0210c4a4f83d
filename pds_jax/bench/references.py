"""What images of a data set look like to a judge, in one small .npz: no data set is needed to score samples with it."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import numpy as np

from pds_jax.io.files import atomic_write
from pds_jax.io.npy import read_npz
from pds_jax.metrics import simple
from pds_jax.metrics.classifier_features import ClassifierJudge
from pds_jax.metrics.frechet import frechet_distance
from pds_jax.types import PdsError

FILE = "reference.npz"
_FORMAT = "pds_jax.judge/1"
_COMPONENTS = 64
_ARRAYS = (
    "pixel_mean", "pixel_basis", "components_mean", "components_covariance", "features_mean", "features_covariance",
    "held_out_mean", "held_out_covariance", "power", "class_share",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class StoredReference:
    """Moments of real images.

    Attributes:
      arrays: pixel_mean (D,) and pixel_basis (D, 64): principal components of the training images; mean and covariance
        of the training images' coordinates in it, of their classifier features, and of those of held-out images; power
        (H, W // 2 + 1, C) of the training images; class_share (classes,) of the training images' labels.
      record: provenance: data set, counts, the classifier's weights.
    """

    arrays: dict[str, np.ndarray]
    record: dict[str, Any]

    def scores(self, images: np.ndarray, classifier: ClassifierJudge) -> dict[str, float]:
        """Spectrum error; Fréchet distances in components and in features (also held out); error of the classes."""
        a = self.arrays
        logits, features = classifier.run(images)  # refuses another shape
        coordinates = simple.PatchPCA(a["pixel_mean"], a["pixel_basis"]).features(images)
        share = np.bincount(logits.argmax(axis=1), minlength=len(a["class_share"])) / len(images)
        own = moments(features)
        return {
            "spectrum_error": simple.spectrum_error(images, a["power"]),
            "frechet": frechet_distance(*moments(coordinates), a["components_mean"], a["components_covariance"]),
            "frechet_classifier": frechet_distance(*own, a["features_mean"], a["features_covariance"]),
            "frechet_held_out": frechet_distance(*own, a["held_out_mean"], a["held_out_covariance"]),
            "class_error": float(0.5 * np.abs(share - a["class_share"]).sum()),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the .npz atomically."""
        stored: dict[str, Any] = {**self.arrays, "record": np.array(json.dumps({"format": _FORMAT, **self.record}))}
        atomic_write(path, lambda file: np.savez_compressed(file, **stored))


def moments(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and covariance (D, D), with n − 1, of rows (n, D)."""
    rows = np.asarray(rows, np.float64)
    centred = rows - rows.mean(axis=0)
    return rows.mean(axis=0), centred.T @ centred / max(len(rows) - 1, 1)


def make(
    train: np.ndarray, labels: np.ndarray, held_out: np.ndarray, classifier: ClassifierJudge, data: str
) -> StoredReference:
    """Moments of training images (n, H, W, C) in [0, 1] with labels (n,), and of held-out images."""
    pca = simple.PatchPCA.fit(train, _COMPONENTS)
    sizes = {"mean": pca.mean, "basis": pca.basis}
    pca = simple.PatchPCA(**{name: array.astype(np.float32).astype(np.float64) for name, array in sizes.items()})
    arrays = {"pixel_mean": pca.mean, "pixel_basis": pca.basis}
    for name, rows in (
        ("components", pca.features(train)),
        ("features", classifier.features(train)),
        ("held_out", classifier.features(held_out)),
    ):
        arrays[f"{name}_mean"], arrays[f"{name}_covariance"] = moments(rows)
    arrays["power"] = simple.power_spectrum(train)
    arrays["class_share"] = np.bincount(labels, minlength=classifier.model.classes) / len(labels)
    record = {"data": data, "train_images": len(train), "held_out_images": len(held_out), "facts": classifier.facts}
    return StoredReference({name: array.astype(np.float32) for name, array in arrays.items()}, record)


def load(path: str | os.PathLike[str]) -> StoredReference:
    """Read a file of :meth:`StoredReference.save`; PdsError if it is damaged or something else."""
    stored = read_npz(path)
    try:
        record = json.loads(str(stored["record"]))
        arrays = {name: stored[name].astype(np.float64) for name in _ARRAYS}
    except (KeyError, ValueError) as error:
        raise PdsError(f"{path} is no reference of a judge ({error!r})") from error
    if record.get("format") != _FORMAT:
        raise PdsError(f"{path} has the format {record.get('format')!r}, not {_FORMAT!r}; update pds_jax")
    return StoredReference(arrays, record)
