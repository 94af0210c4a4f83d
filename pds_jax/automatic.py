"""Resolve predictor="auto", head_start="auto" and grid="gits" by measurements on the checkpoint."""

from __future__ import annotations

import functools
import hashlib
import json
import math

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from pds_jax import choose, gits, teacher, time_grids
from pds_jax import statistics as statistics_lib
from pds_jax.batches import Given
from pds_jax.io.manifest import plain
from pds_jax.levels import levels
from pds_jax.loading import Trained, digest_of
from pds_jax.options import alpha_options, checked_evaluations, statistics_of, with_options
from pds_jax.predictors import get_predictor
from pds_jax.steps import named_options
from pds_jax.types import PdsError, ScoreFn


def chosen(trained: Trained, config: ConfigDict, nfe: int, given: Given | None) -> tuple[ConfigDict, tuple[str, ...]]:
    """The configuration that predictor="auto" stands for, and why."""
    measures, stats = _measures(trained, config, "predictor=auto", given)
    choice = choose.choose(measures, nfe, stats.cross is not None)
    for reason in choice.reasons:
        logging.info("predictor=auto, %d evaluations: %s", nfe, reason)
    return with_options(config, {**alpha_options(math.inf), **choice.options}), choice.reasons


def measured(trained: Trained, config: ConfigDict, given: Given | None) -> tuple[ConfigDict, tuple[str, ...]]:
    """The configuration with numbers for head_start="auto" and grid="gits", and where they are from."""
    said: list[str] = []
    if config.sampling.get("head_start") == "auto":
        config, reason = _with_head_start(trained, config, given)
        said.append(reason)
    if config.sampling.get("grid") == "gits" and config.sampling.method == "pc" and "teacher" not in config.sampling:
        config, reason = _with_gits(trained, config, given)
        said.append(reason)
    return config, tuple(said)


def _with_head_start(trained: Trained, config: ConfigDict, given: Given | None) -> tuple[ConfigDict, str]:
    """The configuration that head_start="auto" stands for, and why."""
    _needed_statistics(trained, config, "head_start=auto")
    # Plan with the level of T first: it checks the options before the network runs.
    top = float(levels(trained.sde, [trained.sde.T])[1][0])
    probe = with_options(config, {"head_start": top})
    nfe = checked_evaluations(trained, probe)
    measures, _ = _measures(trained, config, "head_start=auto", given)
    start, reason = choose.head_start(measures, nfe)
    logging.info("head_start=auto, %d evaluations: %s", nfe, reason)
    return with_options(config, {"head_start": start}), reason


def _with_gits(trained: Trained, config: ConfigDict, given: Given | None) -> tuple[ConfigDict, str]:
    """The configuration with the times that grid="gits" stands for, and how they were found."""
    name = config.sampling.predictor
    if not get_predictor(name).any_grid:
        raise PdsError(f"predictor {name!r} steps through the SDE's own levels: use grid 'uniform', not 'gits'")
    own = named_options(config.sampling.get("solver_options", ""))
    coeff = own.pop("coeff", config.sampling.get("coeff", 1.15))
    text = ",".join(f"{option}={value}" for option, value in own.items())
    edm = with_options(config, {"grid": "edm", "solver_options": text})
    if "coeff" in edm.sampling:
        del edm.sampling["coeff"]
    speed_up = float(config.sampling.get("speed_up", 1.0))
    count, eps = time_grids.speed_up(config.model.num_scales, speed_up, trained.sde.default_eps)
    # With even costs, which need no network: what is refused is refused before the teacher's run.
    even = np.square(np.subtract.outer(np.arange(teacher.STEPS), np.arange(teacher.STEPS)))
    times = time_grids.edm_rho(trained.sde, eps, teacher.STEPS)
    checked_evaluations(trained, with_options(config, {"cost": even, "teacher": times, "corrector_levels": None}))
    key = "" if given else _decided_by(trained)
    costs = teacher.costs(trained.sde, trained.shape, eps, _measured_score(trained, given, teacher.IMAGES), key)
    times = gits.gits(trained.sde, eps, count, coeff=coeff, **costs)
    said = f"grid=gits: {count} of {teacher.STEPS} times of DDIM, from {teacher.EVALUATIONS} evaluations"
    return with_options(edm, {"grid": [float(t) for t in times]}), said


def _measured_score(trained: Trained, given: Given | None, images: int) -> ScoreFn:
    """The score to measure with so many images: what is given, else the network's own."""
    return trained.score_fn if given is None else given(range(images))[1]


def _decided_by(trained: Trained, *more: str) -> str:
    """A key for what is remembered of a checkpoint's score."""
    return hashlib.sha256(json.dumps([plain(trained.identity), *more], sort_keys=True).encode()).hexdigest()


def _needed_statistics(trained: Trained, config: ConfigDict, what: str) -> statistics_lib.Statistics:
    stats = statistics_of(trained, config)
    if stats is None or config.sampling.method != "pc":
        raise PdsError(f"{what} needs method 'pc' and the data's statistics: pass --statistics=FILE.npz")
    return stats


def _measures(
    trained: Trained, config: ConfigDict, what: str, given: Given | None
) -> tuple[choose.Measured, statistics_lib.Statistics]:
    """What ``choose`` measures of the checkpoint, and the statistics."""
    stats = _needed_statistics(trained, config, what)
    moments = stats.to_range(config.data.centered)
    score_fn = _measured_score(trained, given, choose.IMAGES)
    measure = functools.partial(choose.measure, score_fn, trained.sde, moments, trained.shape)
    # Measurements for a prompt or a class are not cached for the checkpoint.
    key = _decided_by(trained, digest_of(moments))
    return measure() if given else choose.remembered(trained.name, key, measure), stats
