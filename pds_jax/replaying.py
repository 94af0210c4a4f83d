"""A sampler run on given noise, to compare it with recorded runs."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pds_jax.scores import as_pytree
from pds_jax.types import Array, PdsError, ScoreFn


def replay(sampler: Any, noise: Array, score_fn: ScoreFn, condition: Any = None) -> tuple[Array, dict[str, Array]]:
    """Run the sampler's own rows on given noise.

    Args:
      sampler: of ``sampling.get_pc_sampler``.
      noise: (1 + N·draws, B, H, W, C) standard normal draws: the prior, then per iteration those of the corrector and
        that of the predictor, as many as ``sampler.table.rows.draws`` says; of a solver that adds noise before an
        evaluation, that comes first. A condition has a draw after each of the two, also where one is none.
      score_fn: score function.
      condition: what is known of the images, of ``controllable_generation``.

    Returns:
      The images, and the trajectory: x_corr, x_corr_mean after each corrector and x_pred, x_pred_mean after each
      predictor, (N, B, H, W, C).

    Raises:
      PdsError: another number of draws, or draws of another shape than the images.
    """
    table = sampler.table
    draws = table.rows.draws[table.ends - 1] + (0 if condition is None else 2)
    if len(noise) != 1 + draws.sum():
        each = f"{len(draws)} x {draws[0]}" if np.all(draws == draws[0]) else f"{draws.sum()}"
        raise PdsError(f"replay needs 1 + {each} draws, got {len(noise)}")
    if tuple(noise.shape[2:]) != sampler.shape:
        raise PdsError(f"the noise is of images {tuple(noise.shape[2:])}, the sampler makes {sampler.shape}")
    firsts = jnp.asarray(1 + np.cumsum(draws) - draws)
    x, states, means = _replay(sampler, jnp.asarray(noise), firsts, as_pytree(score_fn), condition, len(table))
    # A corrector's state is that of its last row, or without one that before the predictor.
    corrections = sum(kind.kind == "corrector" for kind in sampler.kinds)
    last = table.ends - 1
    iteration, is_correction = table.rows.iteration, table.rows.kind < corrections
    before = np.array([max(np.flatnonzero((iteration == i + 1) & is_correction), default=end)
                       for i, end in enumerate(np.concatenate([[-1], last[:-1]]))])  # fmt: skip
    pick = {"x_corr": (states, before + 1), "x_corr_mean": (means, before + 1), "x_pred": (states, last + 1)}
    return x, {name: of[rows] for name, (of, rows) in {**pick, "x_pred_mean": (means, last + 1)}.items()}


@functools.partial(jax.jit, static_argnums=5)
def _replay(
    sampler: Any, noise: Array, firsts: Array, score_fn: ScoreFn, condition: Any, count: int
) -> tuple[Array, Array, Array]:
    """The images, and x and x_mean at the start and after each row; firsts (N,), the first draw of each iteration."""

    def turn(carry: Any, _: None) -> tuple[Any, tuple[Array, Array]]:
        carry = sampler.turn(carry, lambda step, draw: noise[firsts[step - 1] + draw], score_fn)
        return carry, (carry.x, carry.x_mean)

    first = sampler.start(noise[0], condition=condition)
    carry, states = jax.lax.scan(turn, first, length=count)
    states = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), (first.x, first.x_mean), states)
    return sampler.result(carry), *states
