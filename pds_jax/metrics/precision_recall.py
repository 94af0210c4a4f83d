"""Fidelity and diversity apart: precision and recall, density and coverage, by k-nearest-neighbour balls in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from pds_jax.metrics.frechet import check_features
from pds_jax.types import PdsError

_BLOCK = 512
_NEARLY_EQUAL = 1e-9  # squared distance over squared norms; below it the matrix product has lost its digits


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
    """Shares of samples inside the other set's balls.

    Attributes:
      precision: share of generated images that look real.
      recall: share of real images that the generator reaches.
      f_score: harmonic mean 2PR/(P + R).
      inside_real: (n_generated,) bool.
      inside_generated: (n_real,) bool.
    """

    precision: float
    recall: float
    f_score: float
    inside_real: np.ndarray
    inside_generated: np.ndarray


@dataclasses.dataclass(frozen=True)
class DensityCoverage:
    """The outlier-robust pair.

    Attributes:
      density: mean number of real balls around a generated image, over k; may exceed 1.
      coverage: share of real images with a generated one in their ball.
    """

    density: float
    coverage: float


def precision_recall(generated: Any, real: Any, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall.

    precision = share of generated f with ‖f − r‖ ≤ NN_k(r) for some real r; recall = the same with the sets exchanged.
    NN_k(r) is the distance to the k-th nearest other row of r's own set.

    Args:
      generated: (n, D) features.
      real: (m, D) features.
      k: neighbours.

    Returns:
      The shares, and each row's verdict.

    Raises:
      PdsError: k < 1, k or fewer rows, other widths, or values that are not finite.

    Source: Kynkäänniemi et al. (2019), eqs. 1 and 2.
    """
    fake, true = _pair(generated, real, k)
    inside_real = _inside(fake, true, _squared_radii(true, k))
    inside_generated = _inside(true, fake, _squared_radii(fake, k))
    p, r = float(inside_real.mean()), float(inside_generated.mean())
    return PrecisionRecall(p, r, 2.0 * p * r / max(1e-5, p + r), inside_real, inside_generated)


def density_coverage(generated: Any, real: Any, k: int = 5) -> DensityCoverage:
    """Density and coverage.

    density = Σ_ij 1[‖f_j − r_i‖ ≤ NN_k(r_i)] / (k n), coverage = share of real r_i with some f_j in that ball. Balls
    are closed, as in precision and recall, which only matters for repeated rows.

    Args:
      generated: (n, D) features f.
      real: (m, D) features r.
      k: neighbours.

    Returns:
      Both figures; both approach 1 for a perfect generator.

    Raises:
      PdsError: k < 1, k or fewer rows, other widths, or values that are not finite.

    Source: Naeem et al. (2020), eqs. 3 and 4.
    """
    fake, true = _pair(generated, real, k)
    squared_radii = _squared_radii(true, k)
    hits, covered = 0, np.zeros(len(true), bool)
    for _, squared in _squared_distances(fake, true):
        inside = squared <= squared_radii[None, :]
        hits += int(inside.sum())
        covered |= inside.any(axis=0)
    return DensityCoverage(hits / (k * len(fake)), float(covered.mean()))


def neighbour_radii(features: Any, k: int) -> np.ndarray:
    """Distance of each row to its k-th nearest other row.

    Args:
      features: (n, D), n > k.
      k: neighbours.

    Returns:
      (n,) float64; 0 where a row is repeated more than k times.

    Raises:
      PdsError: k or fewer rows, or values that are not finite.
    """
    return np.sqrt(_squared_radii(check_features(features, least=k + 1), k))


def _squared_radii(rows: np.ndarray, k: int) -> np.ndarray:
    radii = np.empty(len(rows))
    for start, squared in _squared_distances(rows, rows):
        radii[start : start + len(squared)] = np.partition(squared, k, axis=1)[:, k]
    return radii


def _pair(generated: Any, real: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
    if k < 1:
        raise PdsError(f"k={k}: at least one neighbour is needed")
    fake, true = check_features(generated, "generated", k + 1), check_features(real, "real", k + 1)
    if fake.shape[1] != true.shape[1]:
        raise PdsError(f"generated and real features have {fake.shape[1]} and {true.shape[1]} columns")
    return fake, true


def _inside(queries: np.ndarray, centres: np.ndarray, squared_radii: np.ndarray) -> np.ndarray:
    """Which queries lie in at least one closed ball."""
    out = np.empty(len(queries), bool)
    for start, squared in _squared_distances(queries, centres):
        out[start : start + len(squared)] = (squared <= squared_radii[None, :]).any(axis=1)
    return out


def _squared_distances(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, squared distances (block, m)); pairs too close for the matrix product are taken directly."""
    y_norms = np.square(y).sum(axis=1)
    for start in range(0, len(x), _BLOCK):
        block = x[start : start + _BLOCK]
        norms = np.square(block).sum(axis=1)[:, None] + y_norms[None, :]
        squared = norms - 2.0 * (block @ y.T)
        close = squared <= _NEARLY_EQUAL * norms
        if close.any():
            equal = _same_rows(block, y) & close
            squared[equal] = 0.0
            pairs = np.argwhere(close & ~equal)
            for first in range(0, len(pairs), _BLOCK):
                i, j = pairs[first : first + _BLOCK].T
                squared[i, j] = np.square(block[i] - y[j]).sum(axis=1)
        yield start, squared


def _same_rows(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n, m) which rows are equal bit for bit: copies of one image are too many pairs to subtract."""
    numbers: dict[bytes, int] = {}
    of_x, of_y = (np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in rows]) for rows in (x, y))
    return of_x[:, None] == of_y[None, :]
