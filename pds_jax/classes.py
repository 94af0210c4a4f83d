"""Class labels per seed, and the class-conditional score function of a batch of seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import logging

from pds_jax import guidance
from pds_jax.sde_lib import SDE
from pds_jax.types import PdsError, ScoreFn

Interval = tuple[float, float]
EVERYWHERE: Interval = (0.0, math.inf)
# Classes in turn, one for each seed, or a word.
Labels = Sequence[int] | str | None


def labels_of(labels: Labels, seeds: Sequence[int], num_classes: int, name: str) -> list[int] | None:
    """The class of each seed.

    Args:
      labels: one class for each seed, "random" (a function of the seed alone), or "none"; None for a network without
        classes.
      seeds: seeds of the images.
      num_classes: of the network, 0 for a network without classes.
      name: of the network, for messages.

    Returns:
      A class for each seed, −1 for none; None for a network without classes.

    Raises:
      PdsError: labels for a network without classes, no labels for a network with classes, not one label for each
        seed, a label that is not a class, or two labels for one seed.
    """
    if not num_classes:
        if labels is not None:
            raise PdsError(f"labels were given, but {name} was trained without classes; leave them out")
        return None
    if labels is None:
        raise PdsError(
            f"{name} was trained with {num_classes} classes and needs labels: 0 to {num_classes - 1}, random, or none"
        )
    if labels == "random":
        return guidance.random_classes(seeds, num_classes)
    if labels == "none":
        return [-1] * len(seeds)
    if isinstance(labels, str):
        raise PdsError(f"labels={labels!r}: give one class for each seed, 'random', or 'none'")
    if len(labels) != len(seeds):
        raise PdsError(f"{len(labels)} labels were given for {len(seeds)} seeds; give one each")
    guidance.one_hot(np.asarray(labels), num_classes)  # raises for a label that is not a class
    of = dict(zip(seeds, labels, strict=True))
    for seed, label in zip(seeds, labels, strict=True):
        if of[seed] != label:
            raise PdsError(f"seed {seed} has the labels {label} and {of[seed]}; give a seed one label")
    return [int(label) for label in labels]


def score_of(
    score_fn: ScoreFn,
    sde: SDE,
    seeds: Sequence[int],
    labels: Sequence[int] | None,
    num_classes: int,
    weight: float = 1.0,
    interval: Interval = EVERYWHERE,
) -> Callable[[Sequence[int]], tuple[None, ScoreFn]]:
    """What ``assembly.draw`` takes as ``given``: some seeds -> (None, the score of their classes, guided).

    Args:
      score_fn: score function; with a method ``with_labels`` if there are labels.
      sde: SDE of the score.
      seeds: all seeds.
      labels: of :func:`labels_of` for these seeds.
      num_classes: of the network.
      weight: see ``guidance.classifier_free``; 1 is no guidance.
      interval: see ``guidance.classifier_free``.

    Returns:
      The function; it takes some of the seeds.

    Raises:
      PdsError: a label that is not a class; when it is called, what ``guidance.classifier_free`` raises.
    """
    if labels is None:
        return lambda some: (None, score_fn)
    row_of = dict(zip(seeds, guidance.one_hot(labels, num_classes), strict=True))

    def given(some: Sequence[int]) -> tuple[None, ScoreFn]:
        rows = np.stack([row_of[seed] for seed in some])
        if weight == 1:
            return None, guidance.conditional(score_fn, rows)
        return None, guidance.classifier_free(score_fn, sde, rows, weight=weight, interval=interval)

    return given


def evaluations_of(weight: float, interval: Interval, model: Any, name: str) -> int:
    """Network evaluations per call of a guided score; raises if the network cannot be guided like that.

    Logs a warning for a network that was trained without label dropout.

    Args:
      weight: of the guidance; 1 is none.
      interval: guided noise levels (low, high].
      model: the section of the configuration.
      name: of the network, for messages.

    Returns:
      1 without guidance, 2 with it.

    Raises:
      PdsError: a weight or an interval out of range, an interval without guidance, or guidance of a network without
        classes and text.
    """
    guidance.check(weight, interval)
    if weight == 1:
        if interval != EVERYWHERE:
            raise PdsError(f"guidance_interval={interval} has no effect without guidance: leave it out or set guidance")
        return 1
    if model.get("context_dim", 0):  # of a text; such networks are trained with empty ones too
        return 2
    if not model.get("label_dim", 0):
        raise PdsError(f"guidance={weight:g}: {name} was trained without classes, there is nothing to guide to")
    if not model.get("label_dropout", 0):
        logging.warning(
            "%s was trained without label dropout: it never saw the zero label that guidance=%g leads away from",
            name,
            weight,
        )
    return 2
