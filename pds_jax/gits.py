"""Times that a teacher's own errors choose: the grid "gits", and its costs.

    cost(i, j) = ‖x_i + (σ_j − σ_i) d_i − x_j‖ for j > i,   d_i the slope at the teacher's point i

or, with the metric "dev", the distance of that Euler step from the line through the teacher's ends, less that of x_j.
Source: Chen et al., "On the Trajectory Regularity of ODE-based Diffusion Sampling", 2024.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pds_jax.levels import levels
from pds_jax.replaying import replay
from pds_jax.scores import as_pytree
from pds_jax.sde_lib import SDE
from pds_jax.steps import number
from pds_jax.time_grids import checked_times, register_grid
from pds_jax.types import Array, PdsError, ScoreFn, check_choice

METRICS = ("dev", "l2", "l1")
_VALUES = 2**27  # of the trajectories that are held at once


@register_grid("gits")
def gits(sde: SDE, eps: float, N: int, *, cost: Any = None, teacher: Any = None, coeff: float = 1.15) -> np.ndarray:  # noqa: N803
    """The N of the teacher's times whose path has the least cost, see :func:`cheapest_path`.

    Source: Chen et al., "On the Trajectory Regularity of ODE-based Diffusion Sampling" (GITS), 2024.

    Args:
      sde: the SDE.
      eps: last time, that of the teacher's grid.
      N: number of times, ≥ 2.
      cost: (n, n), of :func:`cost_matrix`.
      teacher: (n,) times of the teacher's grid.
      coeff: weight of the rest of a path.

    Raises:
      PdsError: cost or teacher missing, of other shapes, or shorter than N; a teacher that does not end at eps.
    """
    if cost is None or teacher is None:
        raise PdsError("grid 'gits' needs cost= and teacher=, both of gits.cost_matrix")
    times = checked_times(sde, teacher)
    if not math.isclose(times[-1], eps, rel_tol=1e-5):
        raise PdsError(f"grid 'gits': the teacher's grid ends at {times[-1]:g}, the sampler's at eps={eps:g}")
    if np.shape(cost) != (len(times), len(times)):
        raise PdsError(f"grid 'gits': cost is {np.shape(cost)} for {len(times)} times; pass both of one cost_matrix")
    return times[cheapest_path(cost, N, coeff)]


def cheapest_path(cost: Any, N: int, coeff: float = 1.15) -> list[int]:  # noqa: N803
    """The path of N points from the first to the last that minimises cost(i, j) + coeff · (cost of the rest).

    >>> cheapest_path([[0, 1, 5], [0, 0, 1], [0, 0, 0]], 3)
    [0, 1, 2]

    Ties go to the smaller index. Source: GITS, algorithm 1.

    Raises:
      PdsError: N outside 2..n, coeff not positive, or a cost that is not finite.
    """
    table = np.asarray(cost, np.float64)
    last = len(table) - 1
    if int(N) != N or not 2 <= N <= last + 1:
        raise PdsError(f"a path through {last + 1} levels has 2 to {last + 1} points, got N={N}")
    if not 0 < number(coeff) < math.inf or not np.isfinite(table).all():
        raise PdsError(f"coeff={coeff}: use a number > 0, and a cost that is finite")
    best, choice = table[:, last], []
    for _ in range(N - 2):
        ahead = np.triu(np.ones_like(table), 1) > 0
        total = np.where(ahead, table + coeff * best[None], np.inf)
        # The last level is the end of a path, not a point on it.
        total[:, last] = np.inf
        choice.append(np.argmin(total, axis=1))
        best = np.min(total, axis=1)
    path = [0]
    for step in reversed(choice):
        path.append(int(step[path[-1]]))
    return [*path, last]


def cost_matrix(teacher: Any, noise: Array, score_fn: ScoreFn, metric: str = "dev") -> dict[str, np.ndarray]:
    """Options of the grid "gits": ``get_pc_sampler(..., grid="gits", **cost_matrix(...))``.

    It costs twice the teacher's evaluations: its run, and the slope at each of its points.

    Args:
      teacher: sampler of the probability flow without a step to the data, of ``sampling.get_pc_sampler(...,
        denoise=False)``, e.g. ddim, ipndm or heun with many steps.
      noise: (B, H, W, C) standard normal noise, some images; the costs are their mean.
      score_fn: score function.
      metric: "dev", "l2" or "l1".

    Returns:
      cost (n, n) and teacher (n,), its times.

    Raises:
      PdsError: unknown metric, or a teacher that adds noise or ends at the data.
    """
    check_choice("metric", metric, METRICS)
    table = teacher.table
    if teacher.draws or np.any(table.rows.noise_before != 0) or table.rows.t_next[-1] == 0:
        raise PdsError("gits: the teacher must be a solver of the probability flow that has denoise=False")
    times = np.append(teacher.times, table.rows.t_next[-1])
    most = max(1, _VALUES // (len(times) * math.prod(noise.shape[1:])))
    parts = [jnp.asarray(noise[start : start + most]) for start in range(0, len(noise), most)]
    costs = [len(part) * np.asarray(_costs_of(teacher, times, part, score_fn, metric)) for part in parts]
    return {"cost": np.asarray(sum(costs) / len(noise), np.float32), "teacher": times}


def _costs_of(teacher: Any, times: np.ndarray, noise: Array, score_fn: ScoreFn, metric: str) -> Array:
    """The costs of some images, whose trajectories are held at once."""
    first = teacher.start(noise).x
    states = jnp.concatenate([first[None], replay(teacher, noise[None], score_fn)[1]["x_pred"]])
    m, sigma = (jnp.asarray(value, jnp.float32) for value in levels(teacher.sde, times))
    slopes = _slopes(states, jnp.asarray(times), m, sigma, as_pytree(score_fn))
    return _costs(states / m[:, None, None, None, None], slopes, sigma, metric)


@jax.jit
def _slopes(states: Array, times: Array, m: Array, sigma: Array, score_fn: ScoreFn) -> Array:
    """dx̄/dσ = −m σ s at (n, B, H, W, C) states."""

    def one(row: tuple[Array, Array, Array, Array]) -> Array:
        x, t, scale, level = row
        return -scale * level * score_fn(x, jnp.full(x.shape[:1], t))

    return jax.lax.map(one, (states, times, m, sigma))


def _costs(states: Array, slopes: Array, sigma: Array, metric: str) -> Array:
    count = len(states)
    flat = states.reshape(count, states.shape[1], -1)
    moves = slopes.reshape(flat.shape)
    if metric == "dev":
        line = flat[-1] - flat[0]
        line = line / jnp.linalg.norm(line, axis=-1, keepdims=True)

    def off(points: Array) -> Array:
        """Distance from the line between the teacher's ends."""
        away = points - flat[0]
        along = jnp.sum(away * line, axis=-1, keepdims=True) * line
        return jnp.linalg.norm(away - along, axis=-1)

    rows = []
    for i in range(count):
        reached = flat[i][None] + (sigma - sigma[i])[:, None, None] * moves[i][None]
        if metric == "dev":
            cost = jax.vmap(off)(reached) - jax.vmap(off)(flat)
        else:
            cost = jnp.linalg.norm(reached - flat, ord=2 if metric == "l2" else 1, axis=-1)
        rows.append(jnp.where(jnp.arange(count) > i, jnp.mean(cost, axis=1), 0.0))
    return jnp.stack(rows)
