"""Inception Score from logits, in float64."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from scipy.special import log_softmax, logsumexp

from pds_jax.metrics.frechet import check_features
from pds_jax.types import PdsError


@dataclasses.dataclass(frozen=True)
class InceptionScore:
    """Inception Score over splits.

    Attributes:
      mean: mean of the splits' scores.
      std: their population standard deviation (ddof 0).
      scores: (splits,) the scores.
    """

    mean: float
    std: float
    scores: np.ndarray


def inception_score(logits: Any, *, splits: int = 10, shuffle: bool = True, seed: int = 2020) -> InceptionScore:
    """exp E_x KL(p(y|x) ‖ p(y)), p(y) the mean of p(y|x) over the split.

    Everything stays in logarithms, so a class that no image of a split reaches counts 0 instead of making a NaN.

    Args:
      logits: (n, classes); for the published figures Inception's 'logits_unbiased' (1008 classes).
      splits: parts i n // splits … (i + 1) n // splits that are scored on their own.
      shuffle: permute the rows first (numpy's RandomState).
      seed: of the permutation.

    Returns:
      Mean, standard deviation and the single scores, each from 1 to the number of classes.

    Raises:
      PdsError: more splits than images, or logits that are not finite.

    Source: Salimans et al. (2016), section 4.
    """
    rows = np.asarray(logits)
    count = len(rows) if rows.ndim else 0
    if not 1 <= splits <= count:
        raise PdsError(f"the Inception Score of {count} images cannot be taken in {splits} splits; use fewer splits")
    if shuffle:
        rows = rows[np.random.RandomState(seed).permutation(count)]
    bounds = [index * count // splits for index in range(splits + 1)]
    scores = np.array([_score(rows[start:stop]) for start, stop in zip(bounds[:-1], bounds[1:], strict=True)])
    return InceptionScore(float(scores.mean()), float(scores.std()), scores)


def _score(logits: np.ndarray) -> float:
    log_p = log_softmax(check_features(logits, "given logits as"), axis=1)
    log_marginal = logsumexp(log_p, axis=0) - np.log(len(log_p))
    divergence = np.sum(np.exp(log_p) * (log_p - log_marginal[None]), axis=1)
    return float(np.exp(divergence.mean()))
