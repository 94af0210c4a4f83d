"""Evaluate images against a reference: FID, KID, Inception Score, precision and recall, density and coverage."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pds_jax.metrics.extractors import Extractor
from pds_jax.metrics.frechet import Gaussian
from pds_jax.metrics.image_sets import ImageSet
from pds_jax.metrics.inception_score import inception_score
from pds_jax.metrics.kid import kernel_distance
from pds_jax.metrics.precision_recall import density_coverage, precision_recall
from pds_jax.metrics.reference import Reference
from pds_jax.metrics.streaming import Extracted, extract
from pds_jax.types import PdsError, unknown_name

STANDARD_COUNT = 50_000
METRICS = ("fid", "kid", "is", "pr", "dc")
_KID_SUBSET = 1000
_IS_SPLITS, _IS_PART = 10, 5000
_NEIGHBOURS = 5  # of density and coverage; precision and recall take 3
_NEED_FEATURES = ("kid", "pr", "dc")


def make_reference(
    images: ImageSet,
    extractor: Extractor,
    *,
    keep_features: bool = False,
    batch_size: int = 64,
    folder: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Reference:
    """Statistics of reference images.

    Args:
      images: the set.
      extractor: see ``extractors.get_extractor``.
      keep_features: keep the features too, for KID, precision and recall.
      batch_size: images at once.
      folder: where a pass that stops leaves what it has, see ``streaming.extract``.
      progress: called with (done, total).

    Returns:
      The reference, with its provenance.

    Raises:
      PdsError: fewer than two images, or images that cannot be read.
    """
    if len(images) < 2:
        raise PdsError(f"{images.name} has {len(images)} image; a reference needs at least 2")
    keep = ("features",) if keep_features else ()
    found = extract(images, extractor, keep=keep, batch_size=batch_size, folder=folder, progress=progress)
    record = getattr(images, "record", None)
    provenance = {
        "extractor": extractor.identity,
        "image_shape": list(images.shape),
        "images": images.name,
        "images_sha256": found.digest,
        **({"files": record} if record is not None else {}),
    }
    moments = found.moments
    return Reference(
        moments.mean, moments.covariance, moments.count, provenance, found.kept.get("features"), "the reference"
    )


def check_request(
    count: int, metrics: Sequence[str], reference: Reference | None, *, allow_fewer: bool, subset_size: int = 1000
) -> None:
    """Find out before any long work what would fail after it.

    Args:
      count: number of images to be judged.
      metrics: some of :data:`METRICS`.
      reference: statistics to compare with; the Inception Score needs none.
      allow_fewer: judge fewer than 50 000 images.
      subset_size: of KID.

    Raises:
      PdsError: unknown metric, too few images, or a reference that is missing or has no features.
    """
    if not metrics:
        raise PdsError(f"no metrics: use some of {','.join(METRICS)}")
    for metric in metrics:
        if metric not in METRICS:
            raise PdsError(unknown_name("metric", metric, METRICS))
    if count < 2:
        raise PdsError(f"{count} images are too few for any metric; use at least 2")
    if count < STANDARD_COUNT and not allow_fewer:
        raise PdsError(
            f"{count} images are fewer than the {STANDARD_COUNT} that published figures use, and FID depends on the "
            "number; add --allow_fewer to go on, and quote the number with the figure"
        )
    if set(metrics) != {"is"} and reference is None:
        raise PdsError(f"metrics {','.join(metrics)} need a reference: give --ref=FILE")
    wanted = [metric for metric in metrics if metric in _NEED_FEATURES]
    if wanted and reference is not None and reference.features is None:
        raise PdsError(
            f"{','.join(wanted)} need the reference's features, {reference.name} holds only mu and sigma; make it with "
            "--keep_features"
        )
    rows = 0 if reference is None or reference.features is None else len(reference.features)
    smallest = min(count, rows)
    if "kid" in metrics and subset_size < 2:
        raise PdsError(f"KID's subsets of {subset_size} are too small; raise --kid_subset_size to at least 2")
    if "kid" in metrics and smallest < subset_size:
        raise PdsError(f"KID's subsets of {subset_size} exceed the {smallest} images; lower --kid_subset_size")
    if {"pr", "dc"} & set(metrics) and smallest <= _NEIGHBOURS:
        raise PdsError(f"{smallest} images are too few for {_NEIGHBOURS} nearest neighbours (metrics pr, dc)")


def evaluate(
    images: ImageSet,
    reference: Reference | None,
    extractor: Extractor,
    *,
    metrics: Sequence[str] = ("fid",),
    allow_fewer: bool = False,
    batch_size: int = 64,
    folder: str | os.PathLike[str] | None = None,
    subset_size: int = 1000,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Judge images.

    Args:
      images: the set.
      reference: statistics to compare with; None for the Inception Score alone.
      extractor: the one that made the reference.
      metrics: some of :data:`METRICS`.
      allow_fewer: accept fewer than 50 000 images; their number stands in the result.
      batch_size: images at once.
      folder: where a pass that stops leaves what it has, see ``streaming.extract``.
      subset_size: images of a subset of KID.
      progress: called with (done, total).

    Returns:
      Figures by name (fid, kid, kid_std, is, is_std, precision, recall, density, coverage), with n, reference_n,
      images_sha256 and notes: what must be quoted beside them.

    Raises:
      PdsError: see :func:`check_request` and ``Reference.check``.
    """
    check_request(len(images), metrics, reference, allow_fewer=allow_fewer, subset_size=subset_size)
    if reference is not None:
        reference.check(extractor, images.shape)
        if "fid" in metrics:
            _ = reference.gaussian  # raises before the pass if sigma is not a covariance
    dims = None if reference is None else reference.mu.size
    keep = [] if set(metrics) <= {"fid", "is"} else ["features"]
    keep += ["logits"] if "is" in metrics else []
    found = extract(images, extractor, keep=keep, batch_size=batch_size, folder=folder, dims=dims, progress=progress)
    figures: dict[str, Any] = {}
    for metric in metrics:
        figures |= _FIGURES[metric](found, reference, subset_size)
    return {
        **figures,
        "n": len(images),
        "reference_n": reference.count if reference is not None else None,
        "images_sha256": found.digest,
        "notes": _notes(len(images), found.moments.mean.size, metrics, reference, subset_size),
    }


def _notes(count: int, dims: int, metrics: Sequence[str], reference: Reference | None, subset_size: int) -> list[str]:
    """What a reader of the figures must know: which of them are of few images, in all or in each of their parts."""
    notes = list(reference.notes) if reference is not None else []
    if count < STANDARD_COUNT:
        notes.append(f"{count} images, fewer than {STANDARD_COUNT}: not comparable with published figures")
    if "fid" in metrics and count <= dims:
        notes.append(f"the covariance of {count} images in {dims} features is singular: FID is biased upwards; see KID")
    of_reference = reference.count if reference is not None else None
    if "fid" in metrics and of_reference is not None and of_reference <= dims:
        notes.append(f"the reference's covariance of {of_reference} images in {dims} features is singular")
    if "kid" in metrics and subset_size < _KID_SUBSET:
        notes.append(f"KID is of subsets of {subset_size} images, published figures of {_KID_SUBSET}")
    if "is" in metrics and count // _IS_SPLITS < _IS_PART:
        parts = min(_IS_SPLITS, count)
        notes.append(f"the Inception Score is of {parts} parts of {count // parts} images, published figures of 5000")
    return notes


def _fid(found: Extracted, reference: Reference | None, subset_size: int) -> dict[str, float]:
    assert reference is not None
    moments = found.moments
    return {"fid": Gaussian.of(moments.mean, moments.covariance, "the images").distance(reference.gaussian)}


def _kid(found: Extracted, reference: Reference | None, subset_size: int) -> dict[str, float]:
    result = kernel_distance(found.kept["features"], _features(reference), subset_size=subset_size)
    return {"kid": result.mean, "kid_std": result.std}


def _is(found: Extracted, reference: Reference | None, subset_size: int) -> dict[str, float]:
    result = inception_score(found.kept["logits"], splits=min(_IS_SPLITS, len(found.kept["logits"])))
    return {"is": result.mean, "is_std": result.std}


def _pr(found: Extracted, reference: Reference | None, subset_size: int) -> dict[str, float]:
    result = precision_recall(found.kept["features"], _features(reference))
    return {"precision": result.precision, "recall": result.recall}


def _dc(found: Extracted, reference: Reference | None, subset_size: int) -> dict[str, float]:
    result = density_coverage(found.kept["features"], _features(reference), _NEIGHBOURS)
    return {"density": result.density, "coverage": result.coverage}


def _features(reference: Reference | None) -> np.ndarray:
    assert reference is not None and reference.features is not None  # check_request saw to it
    return reference.features


_FIGURES: Mapping[str, Callable[[Extracted, Reference | None, int], dict[str, float]]] = {
    "fid": _fid,
    "kid": _kid,
    "is": _is,
    "pr": _pr,
    "dc": _dc,
}


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and minimum of every figure over several seed ranges (EDM quotes the minimum of three).

    Args:
      runs: results of :func:`evaluate`.

    Returns:
      {"mean": {figure: value}, "minimum": {figure: value}}.
    """
    names = [name for name, value in runs[0].items() if isinstance(value, float)]
    table = {name: [float(run[name]) for run in runs] for name in names}
    return {
        "mean": {name: float(np.mean(values)) for name, values in table.items()},
        "minimum": {name: min(values) for name, values in table.items()},
    }
