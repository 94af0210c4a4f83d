"""Costs for the grid "gits": computed from a long run of the checkpoint's probability flow (the teacher)."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from pds_jax import cache, gits, sampling
from pds_jax.keys import image_keys, normal
from pds_jax.levels import levels
from pds_jax.sde_lib import SDE
from pds_jax.types import ScoreFn

STEPS, IMAGES = 61, 64
EVALUATIONS = (2 * STEPS - 1) * IMAGES  # of the teacher's run, and of the slope at each of its points
_FIRST_SEED = 2**31 - IMAGES


def costs(sde: SDE, shape: tuple[int, int, int], eps: float, score_fn: ScoreFn, key: str = "") -> dict[str, Any]:
    """Options cost and teacher of the grid "gits", from DDIM with 60 steps on EDM's grid, of 64 images.

    Source: Chen et al., "On the Trajectory Regularity of ODE-based Diffusion Sampling" (GITS), 2024.

    Args:
      sde: the SDE.
      shape: (H, W, C) of an image.
      eps: last time of the grid.
      score_fn: score function of the checkpoint.
      key: cache key that identifies the score; empty disables caching.

    Returns:
      cost (61, 61) and teacher (61,).
    """

    def compute() -> dict[str, Any]:
        options: dict[str, Any] = {"grid": "edm", "eps": eps, "denoise": False}
        solver = sampling.get_pc_sampler(sde.with_num_scales(STEPS), shape, "ddim", "none", **options)
        noise = normal(image_keys(range(_FIRST_SEED, _FIRST_SEED + IMAGES)), 0, 0, shape)
        return {name: np.asarray(value).tolist() for name, value in gits.cost_matrix(solver, noise, score_fn).items()}

    def valid(value: Any) -> bool:
        return isinstance(value, dict) and np.shape(value.get("cost", ())) == (STEPS, STEPS)

    ends = levels(sde, [sde.T, eps])[1].tolist()
    decided = json.dumps([key, type(sde).__name__, ends, shape, STEPS, IMAGES])
    found = cache.remembered("gits", decided, compute, valid) if key else compute()
    return {name: np.asarray(value) for name, value in found.items()}
