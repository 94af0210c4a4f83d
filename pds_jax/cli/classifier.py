"""``--classifier``: the sampling of a network guided to classes by a classifier of its noisy images."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from pds_jax import assembly, checkpoints, classes, guidance, scores
from pds_jax import controllable_generation as cg
from pds_jax.cli.options import RunOptions
from pds_jax.data.shapes import image_shape
from pds_jax.denoisers import NoisyLogits, get_logits
from pds_jax.models import create_model
from pds_jax.types import PdsError, ScoreFn

NAME = "adm_classifier"
_EXAMPLE = "--classifier_config=configs/adm/classifier256.py"


@dataclasses.dataclass(frozen=True)
class Guide:
    """A classifier and what it is to guide to.

    Attributes:
      logits: of noisy images.
      num_classes: that it knows.
      labels: class of each seed.
      scale: weight of its gradient.
      digest: SHA-256 of its weights.
    """

    logits: NoisyLogits
    num_classes: int
    labels: tuple[int, ...]
    scale: float
    digest: str

    def given(self, trained: assembly.Trained, plan: assembly.Plan, seeds: Sequence[int]) -> assembly.Given:
        """What ``assembly.draw`` takes as ``given``: the score of some seeds plus scale ∇ log p(class | x_t)."""
        label_of = dict(zip(seeds, self.labels, strict=True))
        score_of = assembly.labelled(trained, plan, seeds, self.labels if trained.num_classes else None)

        def given(some: Sequence[int]) -> tuple[Any, ScoreFn]:
            condition, score_fn = score_of(some)
            labels = np.asarray([label_of[seed] for seed in some])
            return condition, cg.class_conditional(
                score_fn, trained.sde, self.logits, labels, num_classes=self.num_classes, scale=self.scale
            )

        return given

    def identity(self) -> dict[str, Any]:
        """What it decides of the images, for the manifest."""
        return {"classifier_sha256": self.digest, "classifier_scale": self.scale}

    def facts(self, plan: assembly.Plan, score_fn: ScoreFn) -> dict[str, Any]:
        """Gradients of the classifier an image, which ``nfe`` does not count; None where the solver decides."""
        count = None if plan.nfe is None else plan.nfe // scores.evaluations(score_fn)
        return {"classifier_gradients": count}


def read(options: RunOptions, trained: assembly.Trained, labels: classes.Labels) -> Guide | None:
    """The classifier of the options, None without one.

    Args:
      options: what was asked for.
      trained: the network to guide.
      labels: one class for each seed, or "random".

    Raises:
      PdsError: an option of a classifier without one, a file of another kind or of other images, or labels that are
        missing or no classes.
    """
    if options.classifier is None:
        for name in ("classifier_scale", "classifier_config"):
            if getattr(options, name) is not None:
                raise PdsError(f"--{name} has no effect here: there is no --classifier; leave it out")
        return None
    scale = 1.0 if options.classifier_scale is None else options.classifier_scale
    if not 0 < scale < np.inf:
        raise PdsError(f"--classifier_scale={scale:g}: use a number above 0, 1 by theory")
    if labels is None or labels == "none":
        raise PdsError("--classifier guides to classes: give --labels=LIST, such as 207 or 0-9, or --labels=random")
    found = _load(options)
    shape, count = image_shape(found.config), int(found.config.model.out_channels)
    if shape != trained.shape:
        raise PdsError(f"--classifier={options.classifier} is of images {shape}, {trained.name} makes {trained.shape}")
    if trained.num_classes not in (0, count):
        raise PdsError(
            f"--classifier={options.classifier} knows {count} classes, {trained.name} {trained.num_classes}; they are "
            "of different data"
        )
    drawn = guidance.random_classes(options.seeds, count) if labels == "random" else [int(label) for label in labels]
    guidance.one_hot(np.asarray(drawn), count)  # refuses what is no class
    if min(drawn) < 0:
        raise PdsError("--labels: -1 is no class, and --classifier guides to one")
    logits = get_logits(found.config, create_model(found.config), jax.device_put(found.params))
    return Guide(logits, count, tuple(drawn), float(scale), found.digest)


def _load(options: RunOptions) -> checkpoints.Loaded:
    path, config = str(options.classifier), options.classifier_config
    if config is None and pathlib.Path(path).exists() and checkpoints.config_of(path) is None:
        raise PdsError(f"--classifier={path} carries no configuration; add {_EXAMPLE}, or your own")
    found = checkpoints.load_any(path, config)
    if found.config.model.name != NAME:
        raise PdsError(
            f"--classifier={path}: model.name={found.config.model.name!r} is no classifier of noisy images; known: "
            f"{NAME}"
        )
    if options.dtype is not None:
        with found.config.unlocked():
            found.config.model.dtype = options.dtype
    return found
