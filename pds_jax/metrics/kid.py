"""Kernel Inception Distance: squared maximum mean discrepancy of features, unbiased, in float64.

Unlike FID it needs no large sample; its estimate may be slightly negative.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from pds_jax.metrics.frechet import check_features
from pds_jax.types import PdsError, check_choice

ESTIMATORS = ("unbiased", "biased", "u-statistic")
_BLOCK = 2048
Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


def polynomial_kernel(degree: int = 3, gamma: float | None = None, coef0: float = 1.0) -> Kernel:
    """The kernel of KID, k(x, y) = (γ xᵀy + c)^d.

    Args:
      degree: d.
      gamma: γ; None for 1/D.
      coef0: c.

    Returns:
      kernel(x (n, D), y (m, D)) -> (n, m).

    Source: Bińkowski et al. (2018), section 4.
    """

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return ((x @ y.T) * (1.0 / x.shape[1] if gamma is None else gamma) + coef0) ** degree

    return kernel


def rbf_kernel(sigma: float = 10.0) -> Kernel:
    """The Gaussian kernel, k(x, y) = exp(−‖x − y‖²/(2σ²)).

    Args:
      sigma: σ, in units of the features.

    Returns:
      kernel(x (n, D), y (m, D)) -> (n, m).

    Raises:
      PdsError: σ is not positive.
    """
    if not sigma > 0:
        raise PdsError(f"the width of the Gaussian kernel must be positive, got {sigma}")

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        squared = np.square(x).sum(1)[:, None] + np.square(y).sum(1)[None, :] - 2.0 * (x @ y.T)
        return np.exp(np.maximum(squared, 0.0) / (-2.0 * sigma**2))

    return kernel


def mmd2(x: Any, y: Any, kernel: Kernel | None = None, estimator: str = "unbiased") -> float:
    """Squared maximum mean discrepancy of two whole sets, sizes may differ; memory is bounded by blocks.

    unbiased: Σ_{i≠j} k(x_i,x_j)/(n(n−1)) + Σ_{i≠j} k(y_i,y_j)/(m(m−1)) − 2 Σ_{ij} k(x_i,y_j)/(nm); biased keeps the
    diagonals and divides by n², m²; u-statistic (n = m) also leaves i = j out of the cross term.

    Args:
      x: (n, D) features.
      y: (m, D) features.
      kernel: see :func:`polynomial_kernel` (the default) and :func:`rbf_kernel`.
      estimator: "unbiased", "biased" or "u-statistic".

    Returns:
      The estimate; may be negative unless biased.

    Raises:
      PdsError: unknown estimator, fewer than two rows, other widths, values that are not finite, or sets of two sizes
        for the u-statistic.

    Source: Gretton et al. (2012), eqs. 3, 4 and 5.
    """
    check_choice("estimator", estimator, ESTIMATORS)
    first, second = _pair(x, y)
    n, m = len(first), len(second)
    if estimator == "u-statistic" and n != m:
        raise PdsError(f"the u-statistic needs sets of one size, got {n} and {m}; use 'unbiased'")
    kernel = kernel or polynomial_kernel()
    (xx, xx_diagonal), (yy, yy_diagonal) = _sums(kernel, first, first), _sums(kernel, second, second)
    xy, xy_diagonal = _sums(kernel, first, second)
    if estimator == "biased":
        return xx / n**2 + yy / m**2 - 2.0 * xy / (n * m)
    within = (xx - xx_diagonal) / (n * (n - 1.0)) + (yy - yy_diagonal) / (m * (m - 1.0))
    if estimator == "u-statistic":
        return within - 2.0 * (xy - xy_diagonal) / (n * (n - 1.0))
    return within - 2.0 * xy / (n * m)


def _pair(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    first, second = check_features(x, "first", 2), check_features(y, "second", 2)
    if first.shape[1] != second.shape[1]:
        raise PdsError(f"the two feature sets have {first.shape[1]} and {second.shape[1]} columns")
    return first, second


def _sums(kernel: Kernel, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Sum of all kernel values and of those with equal row numbers."""
    total = diagonal = 0.0
    for top in range(0, len(x), _BLOCK):
        for left in range(0, len(y), _BLOCK):
            values = kernel(x[top : top + _BLOCK], y[left : left + _BLOCK])
            total += float(values.sum())
            diagonal += float(np.trace(values)) if top == left else 0.0
    return total, diagonal


@dataclasses.dataclass(frozen=True)
class KernelDistance:
    """KID over subsets.

    Attributes:
      mean: mean of the subsets' estimates.
      std: their population standard deviation (ddof 0).
      values: (subsets,) the estimates.
    """

    mean: float
    std: float
    values: np.ndarray


def kernel_distance(
    x: Any,
    y: Any,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    kernel: Kernel | None = None,
    estimator: str = "unbiased",
    seed: int = 2020,
) -> KernelDistance:
    """KID: the mean of :func:`mmd2` over random subsets, drawn as torch-fidelity draws them.

    Args:
      x: (n, D) features.
      y: (m, D) features.
      subsets: how many.
      subset_size: rows of each set in a subset, without replacement.
      kernel: see :func:`mmd2`.
      estimator: see :func:`mmd2`.
      seed: of numpy's RandomState; for each subset the rows of x are drawn first, then those of y.

    Returns:
      Mean, standard deviation and the single values. Negative values are normal for close sets.

    Raises:
      PdsError: a subset larger than a set or below 2, no subsets, other widths, or values that are not finite.

    Source: Bińkowski et al. (2018), section 4.
    """
    first, second = _pair(x, y)
    smallest = min(len(first), len(second))
    if not 2 <= subset_size <= smallest:
        raise PdsError(
            f"KID's subset_size={subset_size} must lie between 2 and the smaller set's {smallest} images "
            f"(sets of {len(first)} and {len(second)})"
        )
    if subsets < 1:
        raise PdsError(f"KID needs at least one subset, got subsets={subsets}")
    draw = np.random.RandomState(seed)
    values = np.empty(subsets)
    for index in range(subsets):
        rows1 = draw.choice(len(first), subset_size, replace=False)
        rows2 = draw.choice(len(second), subset_size, replace=False)
        values[index] = mmd2(first[rows1], second[rows2], kernel, estimator)
    return KernelDistance(float(values.mean()), float(values.std()), values)
