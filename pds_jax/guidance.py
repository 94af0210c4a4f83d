"""Guidance as transforms of score functions: towards a class, or away from a worse model.

    s = s_u + w (s_c − s_u)

with s_c the score for the labels, s_u the one without (classifier-free guidance, Ho and Salimans 2022, whose weight is
w − 1) or of a worse network (autoguidance, Karras et al. 2024); w = 1 is s_c. With an interval of noise levels the
weight is 1 outside of it (Kynkäänniemi et al. 2024). Guidance by a classifier is
``controllable_generation.class_conditional``, and adds its gradient in the same way.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from pds_jax.ops import batch_mul
from pds_jax.scores import evaluations, lay_out
from pds_jax.sde_lib import SDE
from pds_jax.types import Array, PdsError, ScoreFn, is_number

Layout = Callable[[Any], Any]


class LabelledScore(ScoreFn, Protocol):
    """A score function whose network takes labels."""

    def with_labels(self, labels: Array | None) -> LabelledScore:
        """The same score for labels (B, label_dim), None for no label."""
        ...


def one_hot(labels: Any, num_classes: int) -> np.ndarray:
    """One-hot rows of classes; the class −1 is no class, a row of zeros.

    Args:
      labels: (B,) integers from −1 to num_classes − 1.
      num_classes: number of classes, ≥ 1.

    Returns:
      (B, num_classes) float32.

    Raises:
      PdsError: num_classes below 1, labels that are not a list of integers, or one out of range.
    """
    array = np.asarray(labels)
    if num_classes < 1:
        raise PdsError("this network takes no labels: it was trained without classes")
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise PdsError(f"labels must be a list of whole numbers, not {array.dtype} of shape {array.shape}")
    bad = np.flatnonzero((array < -1) | (array >= num_classes))
    if bad.size:
        raise PdsError(
            f"label {array[bad[0]]} of image {bad[0]} is not one of the classes 0 to {num_classes - 1} (-1 is no class)"
        )
    rows = np.eye(num_classes, dtype=np.float32)[np.maximum(array, 0)]
    return rows * (array >= 0).astype(np.float32)[:, None]


def random_classes(seeds: Any, num_classes: int) -> list[int]:
    """A uniformly random class for each seed, a function of the seed alone.

    Args:
      seeds: (B,) integers ≥ 0.
      num_classes: number of classes, ≥ 1.

    Returns:
      B classes from 0 to num_classes − 1.
    """
    return [int(np.random.default_rng([int(seed), num_classes]).integers(num_classes)) for seed in seeds]


@flax.struct.dataclass
class ConditionalScore:
    """Score of a network for labels; made by :func:`conditional`.

    Attributes:
      score_fn: a labelled score function.
      labels: (B, label_dim), one row an image.
    """

    score_fn: Any
    labels: Array

    @property
    def evaluations(self) -> int:
        """Network evaluations a call."""
        return evaluations(self.score_fn)

    def __call__(self, x: Array, t: Array) -> Array:
        """Score (B, H, W, C) at x (B, H, W, C), t (B,)."""
        score: Array = self.score_fn.with_labels(self.labels)(x, t)
        return score

    def lay_out(self, copy: Layout, split: Layout) -> ConditionalScore:
        """Place on devices: copy what all images share, split what belongs to each."""
        return dataclasses.replace(self, score_fn=copy(self.score_fn), labels=split(self.labels))


def conditional(score_fn: Any, labels: Any) -> ConditionalScore:
    """Score of a labelled network for given labels, s_c(x, t) = s(x, t; c).

    Args:
      score_fn: a score function with a method ``with_labels``.
      labels: (B, label_dim) floats, one-hot (:func:`one_hot`) or soft, one row an image.

    Returns:
      score(x (B, H, W, C), t (B,)) -> (B, H, W, C), a pytree.

    Raises:
      PdsError: the score function takes no such labels, or the labels are not finite rows of floats.
    """
    rows = _rows(labels)
    return ConditionalScore(_labelled(score_fn, rows), rows)


@flax.struct.dataclass
class ClassifierFreeScore:
    """Classifier-free guidance by one network; made by :func:`classifier_free`.

    Attributes:
      score_fn: a labelled score function.
      labels: (B, label_dim) of the images.
      null: (B, label_dim) of the score that is guided away from.
      sde: SDE of the score.
      weight: () w.
      low, high: () the noise levels std/m_t in (low, high] are guided.
      limited: whether there are levels outside.
    """

    score_fn: Any
    labels: Array
    null: Array
    sde: SDE
    weight: Array
    low: Array
    high: Array
    limited: bool = flax.struct.field(pytree_node=False, default=True)

    @property
    def evaluations(self) -> int:
        """Network evaluations a call; outside of the interval it is half of that, but counts as much."""
        return 2 * evaluations(self.score_fn)

    def __call__(self, x: Array, t: Array) -> Array:
        """Score (B, H, W, C) at x (B, H, W, C), t (B,); both scores come from one evaluation of 2B images."""

        def plain(x: Array, t: Array) -> Array:
            score: Array = self.score_fn.with_labels(self.labels)(x, t)
            return score

        def guided(x: Array, t: Array) -> Array:
            labels = jnp.concatenate([self.labels, self.null])
            both = self.score_fn.with_labels(labels)(jnp.concatenate([x, x]), jnp.concatenate([t, t]))
            with_class, without = jnp.split(both, 2)
            weight = jnp.where(inside, self.weight, jnp.float32(1))
            return without + batch_mul(weight, with_class - without)

        inside = _inside(self.sde, t, self.low, self.high)
        if not self.limited:
            return guided(x, t)
        out: Array = jax.lax.cond(jnp.any(inside), guided, plain, x, t)
        return out

    def lay_out(self, copy: Layout, split: Layout) -> ClassifierFreeScore:
        """Place on devices: copy what all images share, split what belongs to each."""
        shared = {name: copy(getattr(self, name)) for name in ("score_fn", "sde", "weight", "low", "high")}
        return dataclasses.replace(self, labels=split(self.labels), null=split(self.null), **shared)


def classifier_free(
    score_fn: Any,
    sde: SDE,
    labels: Any,
    *,
    weight: float,
    null: Any = None,
    interval: tuple[float, float] = (0.0, math.inf),
) -> ClassifierFreeScore:
    """Classifier-free guidance by a network that was trained with and without labels, s = s_u + w (s_c − s_u).

    s_c is the score for ``labels``, s_u the one for ``null``. A call costs two evaluations of the network.

    Args:
      score_fn: a score function with a method ``with_labels``.
      sde: SDE of the score.
      labels: (B, label_dim) floats, one row an image.
      weight: w, finite and ≥ 0; 1 is no guidance.
      null: (B, label_dim) floats, the labels of s_u; None for zeros.
      interval: noise levels std/m_t in (low, high], in the data's units, that are guided; elsewhere w = 1.

    Returns:
      The guided score, a pytree.

    Raises:
      PdsError: the score function takes no such labels, labels or null are not finite rows of floats of one shape, a
        weight that is negative or not finite, or not 0 ≤ low < high.

    Source: Ho and Salimans, 2022, arXiv 2207.12598, with the weight w − 1; Kynkäänniemi et al., NeurIPS 2024.
    """
    rows = _rows(labels)
    away = jnp.zeros_like(rows) if null is None else _rows(null)
    if away.shape != rows.shape:
        raise PdsError(f"null has shape {away.shape}, labels {rows.shape}; give both one row an image, of one length")
    low, high = _checked_interval(interval)
    limited = tuple(interval) != (0, math.inf)
    return ClassifierFreeScore(_labelled(score_fn, rows), rows, away, sde, _checked_weight(weight), low, high, limited)


@flax.struct.dataclass
class TwoNetworkScore:
    """Guidance by a second score; made by :func:`away_from`.

    Attributes:
      score_fn: the better score function.
      worse: the score function that is guided away from.
      sde: SDE of both.
      weight: () w.
      low, high: () the noise levels std/m_t in (low, high] are guided.
    """

    score_fn: Any
    worse: Any
    sde: SDE
    weight: Array
    low: Array
    high: Array

    @property
    def evaluations(self) -> int:
        """Network evaluations a call; outside of the interval it is fewer, but counts as many."""
        return evaluations(self.score_fn) + evaluations(self.worse)

    def __call__(self, x: Array, t: Array) -> Array:
        """Score (B, H, W, C) at x (B, H, W, C), t (B,)."""
        inside = _inside(self.sde, t, self.low, self.high)
        score = self.score_fn(x, t)
        away: Array = jax.lax.cond(jnp.any(inside), lambda x, t: score - self.worse(x, t), lambda x, t: 0 * x, x, t)
        return score + batch_mul(jnp.where(inside, self.weight - 1, jnp.float32(0)), away)

    def lay_out(self, copy: Layout, split: Layout) -> TwoNetworkScore:
        """Place on devices: copy what all images share, split what belongs to each."""
        shared = {name: copy(getattr(self, name)) for name in ("sde", "weight", "low", "high")}
        score_fn, worse = (lay_out(score, copy, split) for score in (self.score_fn, self.worse))
        return dataclasses.replace(self, score_fn=score_fn, worse=worse, **shared)


def away_from(
    score_fn: ScoreFn, worse: ScoreFn, sde: SDE, *, weight: float, interval: tuple[float, float] = (0.0, math.inf)
) -> TwoNetworkScore:
    """Guidance by a second network, without labels or worse: s = s_u + w (s_c − s_u), s_u the score of that network.

    Args:
      score_fn: s_c, a pytree.
      worse: s_u, a pytree.
      sde: SDE of both scores.
      weight: w, finite and ≥ 0; 1 is no guidance.
      interval: noise levels std/m_t in (low, high], in the data's units, that are guided; elsewhere w = 1.

    Returns:
      The guided score, a pytree; a call evaluates both networks.

    Raises:
      PdsError: a weight that is negative or not finite, or not 0 ≤ low < high.

    Source: Karras et al., NeurIPS 2024, arXiv 2406.02507.
    """
    return TwoNetworkScore(score_fn, worse, sde, _checked_weight(weight), *_checked_interval(interval))


def _inside(sde: SDE, t: Array, low: Array, high: Array) -> Array:
    level = sde.std(t) / sde.mean_scale(t)
    return (level > low) & (level <= high)


def _labelled(score_fn: Any, rows: Array) -> Any:
    """The score function itself, if it takes such labels."""
    if not hasattr(score_fn, "with_labels"):
        raise PdsError("this score function takes no labels: it needs a method with_labels(labels)")
    score_fn.with_labels(rows)
    return score_fn


def _rows(labels: Any) -> Array:
    array = np.asarray(labels)
    if array.ndim != 2 or array.dtype.kind != "f" or not np.isfinite(array).all():
        raise PdsError(
            f"labels must be finite rows (B, label_dim) of floats, not {array.dtype} of shape {array.shape}; "
            "guidance.one_hot makes them from classes"
        )
    return jnp.asarray(array, jnp.float32)


def check(weight: float, interval: tuple[float, float]) -> None:
    """Raise if a weight or an interval of guidance is out of range.

    Args:
      weight: w.
      interval: (low, high) noise levels.

    Raises:
      PdsError: a weight that is negative or not finite, or not 0 ≤ low < high.
    """
    _checked_weight(weight)
    _checked_interval(interval)


def _checked_weight(weight: float) -> Array:
    if not is_number(weight) or not math.isfinite(weight) or weight < 0:
        raise PdsError(f"guidance weight {weight}: use a finite number >= 0; 1 is no guidance")
    return jnp.float32(weight)


def _checked_interval(interval: tuple[float, float]) -> tuple[Array, Array]:
    low, high = (float(end) for end in interval)
    if not 0 <= low < high:
        raise PdsError(f"guidance interval ({low:g}, {high:g}] needs 0 <= low < high, noise levels in the data's units")
    return jnp.float32(low), jnp.float32(high)
