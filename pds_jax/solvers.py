"""Solvers of the probability flow and of the reverse SDE that need few steps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pds_jax.sde_lib import SDE
from pds_jax.types import Array, ScoreFn


def adaptive(
    x: Array, *, sde: SDE, score_fn: ScoreFn, eps: Any, rtol: Any, atol: Any, max_steps: int = 4096
) -> tuple[Array, Array]:
    """Probability flow dx/dt = f(x, t) − ½ g(t)² s(x, t) from T to eps, by diffrax's Dopri5 with its own steps.

    Args:
      x: (B, H, W, C) float32 images at T.
      sde: SDE.
      score_fn: score function.
      eps: () last time.
      rtol: () relative tolerance.
      atol: () absolute tolerance.
      max_steps: steps after which diffrax raises.

    Returns:
      (B, H, W, C) images at eps and (B,) int32 evaluations of the score.
    """
    import diffrax  # only here: the fixed-step samplers do not need it

    def velocity(t: Array, state: Array, _: Any) -> Array:
        return sde.reverse(score_fn, probability_flow=True).sde(state[None], jnp.reshape(t, (1,)))[0][0]

    def solve(start: Array) -> tuple[Array, Array]:
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(velocity),
            diffrax.Dopri5(),
            t0=jnp.float32(sde.T),
            t1=jnp.asarray(eps, jnp.float32),
            dt0=None,
            y0=start,
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, norm=lambda error: jnp.max(jnp.abs(error))),
            max_steps=max_steps,
        )
        # Dopri5 reuses its last stage: six evaluations a step, one more at the start, two to choose the first step.
        return solution.ys[0], (6 * solution.stats["num_steps"] + 3).astype(jnp.int32)

    return jax.vmap(solve)(x)
