"""Fréchet distance between two sets of features (FID when the features are Inception's), in float64 throughout.

The statistics of any number of images are streamed: count, mean and scatter matrix are all that is kept.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from pds_jax.types import PdsError

_ASYMMETRY = 1e-6  # relative; above it a matrix is no covariance but a mix-up
_NEGATIVE = 1e-6  # relative to the largest eigenvalue


def frechet_distance(mu1: Any, sigma1: Any, mu2: Any, sigma2: Any) -> float:
    """Squared Fréchet (Wasserstein-2) distance of two Gaussians.

    d² = ‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½, and tr (Σ₁Σ₂)^½ = ‖Σ₁^½ Σ₂^½‖_* (sum of singular values) with
    Σ = U Λ Uᵀ by symmetric eigendecomposition. Nothing complex can arise, and singular covariances are fine.

    Args:
      mu1: (D,) mean.
      sigma1: (D, D) covariance (n − 1 in the denominator).
      mu2: (D,) mean.
      sigma2: (D, D) covariance.

    Returns:
      d², in squared feature units. Equal inputs may give about ±1e-15 tr Σ, of either sign.

    Raises:
      PdsError: shapes differ, values are not finite, or a matrix is not a covariance.

    Source: Dowson and Landau (1982), eq. 16; Heusel et al. (2017), eq. 6.
    """
    return Gaussian.of(mu1, sigma1, "first statistics").distance(Gaussian.of(mu2, sigma2, "second statistics"))


def frechet_distance_from_features(features1: Any, features2: Any) -> float:
    """Fréchet distance straight from features, without forming a covariance.

    With centred A/√(n₁−1) and B/√(n₂−1) the trace term is ‖A Bᵀ‖_*. The condition number is not squared, so the result
    is right to about 1e-14 even where covariances are singular (fewer images than features).

    Args:
      features1: (n₁, D), n₁ ≥ 2.
      features2: (n₂, D), n₂ ≥ 2.

    Returns:
      d² as in :func:`frechet_distance`.

    Raises:
      PdsError: fewer than two rows, other widths, or values that are not finite.

    Source: derived from frechet_distance; Σ₁^½ may be any root with root·rootᵀ = Σ₁.
    """
    return Gaussian.of_features(features1, "first").distance(Gaussian.of_features(features2, "second"))


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """A Gaussian by its mean and a root of its covariance; finding the root is most of the work of a distance.

    Attributes:
      mean: (D,) float64.
      root: (D, rank) float64 R with Σ = R Rᵀ.
    """

    mean: np.ndarray
    root: np.ndarray

    @classmethod
    def of(cls, mu: Any, sigma: Any, which: str) -> Gaussian:
        """By symmetric eigendecomposition; eigenvalues that are rounding of zero are left out.

        Args:
          mu: (D,) mean.
          sigma: (D, D) covariance.
          which: what they are called in messages.

        Returns:
          The Gaussian.

        Raises:
          PdsError: other shapes, values that are not finite, or a matrix that is not symmetric or has a negative
            eigenvalue.
        """
        return cls(*_checked_root(mu, sigma, which))

    @classmethod
    def of_features(cls, features: Any, which: str) -> Gaussian:
        """From features, without forming a covariance.

        Args:
          features: (n, D), n ≥ 2.
          which: what they are called in messages.

        Returns:
          The Gaussian, of rank at most min(n, D).

        Raises:
          PdsError: fewer than two rows, or values that are not finite.
        """
        rows = check_features(features, which, 2)
        mean = rows.mean(axis=0)
        centred = (rows - mean) / np.sqrt(len(rows) - 1.0)
        if centred.shape[0] > centred.shape[1]:
            centred = np.linalg.qr(centred, mode="r")
        return cls(mean, centred.T)

    def distance(self, other: Gaussian) -> float:
        """Squared Fréchet distance, see :func:`frechet_distance`.

        Args:
          other: Gaussian of as many features.

        Returns:
          d².

        Raises:
          PdsError: the numbers of features differ.
        """
        if self.mean.shape != other.mean.shape:
            raise PdsError(
                f"the two statistics have {self.mean.size} and {other.mean.size} features; they come from different "
                "extractors"
            )
        product = self.root.T @ other.root
        trace_root = float(np.linalg.svd(product, compute_uv=False).sum()) if product.size else 0.0
        traces = float(np.square(self.root).sum() + np.square(other.root).sum())
        return float(np.square(self.mean - other.mean).sum()) + traces - 2.0 * trace_root


def _checked_root(mu: Any, sigma: Any, which: str) -> tuple[np.ndarray, np.ndarray]:
    mean, matrix = np.asarray(mu, np.float64), np.asarray(sigma, np.float64)
    if mean.ndim != 1 or matrix.shape != (mean.size, mean.size):
        raise PdsError(f"{which}: mu {mean.shape} and sigma {matrix.shape} must be (D,) and (D, D)")
    if not (np.isfinite(mean).all() and np.isfinite(matrix).all()):
        raise PdsError(f"{which} hold NaN or infinity: too few samples, or broken features")
    scale = float(np.abs(matrix).max(initial=0.0))
    if float(np.abs(matrix - matrix.T).max(initial=0.0)) > _ASYMMETRY * scale:
        raise PdsError(f"{which}: sigma is not symmetric, so it is no covariance")
    values, vectors = np.linalg.eigh(0.5 * (matrix + matrix.T))
    largest = float(np.abs(values).max(initial=0.0))
    if values.size and values[0] < -_NEGATIVE * largest:
        raise PdsError(f"{which}: sigma has the eigenvalue {values[0]:.3g} < 0, so it is no covariance")
    keep = values > mean.size * np.finfo(np.float64).eps * largest  # the rest is rounding of zero
    return mean, vectors[:, keep] * np.sqrt(values[keep])


def check_features(features: Any, which: str = "given", least: int = 1) -> np.ndarray:
    """Features as float64, checked.

    Args:
      features: (n, D) numbers.
      which: name of the set, for the message.
      least: how many rows there must be.

    Returns:
      (n, D) float64.

    Raises:
      PdsError: another rank, fewer rows, or values that are not finite.
    """
    array = np.asarray(features, np.float64)
    if array.ndim != 2 or array.shape[1] == 0:
        raise PdsError(f"the {which} features have shape {array.shape}; expected (number of images, features)")
    if len(array) < least:
        raise PdsError(f"the {which} set has {len(array)} images; at least {least} are needed")
    if not np.isfinite(array).all():
        row = int(np.argmin(np.isfinite(array).all(axis=1)))
        raise PdsError(f"the {which} features are not finite at image {row}")
    return array


@dataclasses.dataclass
class FeatureMoments:
    """Count, mean and scatter Σ(f − μ)(f − μ)ᵀ of a stream of features; memory O(D²), float64.

    Sets are joined by the pairwise update, which has no cancellation: μ = μ_a + δ n_b/n,
    S = S_a + S_b + δδᵀ n_a n_b/n, δ = μ_b − μ_a. Products of float32 features are exact in float64.

    Source: Chan, Golub and LeVeque (1983), eq. 2.1.

    Attributes:
      count: images so far.
      mean: (D,) float64.
      scatter: (D, D) float64.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def empty(cls, dims: int) -> FeatureMoments:
        """Moments of no images at all."""
        return cls(0, np.zeros(dims), np.zeros((dims, dims)))

    @classmethod
    def of(cls, features: Any) -> FeatureMoments:
        """Moments of one block of features (n, D), n ≥ 1.

        Raises:
          PdsError: another rank, no rows, or values that are not finite.
        """
        block = check_features(features)
        mean = block.mean(axis=0)
        centred = block - mean
        return cls(len(block), mean, centred.T @ centred)

    def add(self, features: Any) -> None:
        """Take in a block of features (n, D), n ≥ 1.

        Raises:
          PdsError: another rank or width, no rows, or values that are not finite.
        """
        self.merge(FeatureMoments.of(features))

    def merge(self, other: FeatureMoments) -> None:
        """Take in the moments of other images.

        Raises:
          PdsError: another number of features.
        """
        if other.mean.shape != self.mean.shape:
            raise PdsError(f"features of {other.mean.size} numbers cannot join those of {self.mean.size}")
        total = self.count + other.count
        if total == 0:
            return
        delta = other.mean - self.mean
        between = np.outer(delta, delta * (self.count * other.count / total))
        self.scatter = self.scatter + other.scatter + between  # not in place: shallow copies keep theirs
        self.mean = self.mean + delta * (other.count / total)
        self.count = total

    @property
    def covariance(self) -> np.ndarray:
        """(D, D) covariance S/(n − 1).

        Raises:
          PdsError: fewer than two images.
        """
        if self.count < 2:
            raise PdsError(f"a covariance needs at least 2 images, got {self.count}")
        return self.scatter / (self.count - 1.0)
