"""Solvers that need few steps, of the probability flow and of the reverse SDE.

They step from any time t to any t_next, at last to the data (t_next = 0), in x̄ = x/m_t whose noise level is
σ̄ = std_t/m_t: there the three SDEs are one and the probability flow is dx̄/dσ̄ = (x̄ − D)/σ̄ with the denoiser
D = x̄ + σ̄² s̄, s̄ = m_t s(x, t) the score of x̄. Below, σ is the level at t and σ' the one at t_next.

    name          step
    ddim          x̄' = x̄ + (1 − σ'/σ) (D − x̄)
    heun          the trapezoidal rule on dx̄/dσ
    sde_dpmpp_2m  ddim's reverse SDE with D extrapolated from the last two

Others are in the files beside: ``adams`` (iPNDM, DEIS), ``dpm`` (DPM-Solver++, UniPC), ``stochastic`` (ER-SDE,
SA-Solver), all steps of ``linear``; ``churn`` (EDM's stochastic sampler, Restart).

Those with the data's spectrum are in ``spectral_steps``. The ordinary differential equations have no noise for M to act
on and refuse it. Sources: Song et al., "Denoising Diffusion Implicit Models", 2021; Karras et al., "Elucidating the
Design Space of Diffusion-Based Generative Models", 2022 (heun); Lu et al., "DPM-Solver++", 2022.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from pds_jax.ops import batch_mul
from pds_jax.preconditioner import Preconditioner, identity
from pds_jax.predictors import register_predictor, score_drift
from pds_jax.scores import checked, lay_out
from pds_jax.sde_lib import SDE
from pds_jax.spectral import noise_level
from pds_jax.types import Array, ScoreFn

_IDENTITY = identity()
GIVEN_UP = -(2**20)  # stands for the number of evaluations where the adaptive solver gives up
_FIRST_STEP = 1e-3  # of the adaptive solver, as a share of the time: so short that it is never rejected


@flax.struct.dataclass
class Memory:
    """What a two-step method keeps of the step before.

    Attributes:
      previous: (B, H, W, C) its denoised image or residual.
      log_level: (B,) log σ there; ∞ before the first step, which makes that step one of first order.
    """

    previous: Array
    log_level: Array

    @classmethod
    def empty(cls, x: Array) -> Memory:
        """Before the first step on images x (B, H, W, C)."""
        return cls(jnp.zeros_like(x), jnp.full(x.shape[:1], jnp.inf))


@register_predictor("ddim", draws=0)
def ddim(x: Array, t: Array, z: Array | None, *, sde: SDE, score_fn: ScoreFn, t_next: Array) -> tuple[Array, Array]:
    """DDIM, the exponential Euler step: x̄' = x̄ + (1 − σ'/σ) (D − x̄).

    Args:
      x: (B, H, W, C) float32 images at t.
      t: (B,) times.
      z: unused.
      sde: SDE.
      score_fn: score function.
      t_next: (B,) times to step to; 0 is the data.

    Returns:
      x at t_next, twice.
    """
    (m, level), (m_next, below) = noise_level(sde, t), noise_level(sde, t_next)
    to_data = batch_mul(m * jnp.square(level), score_fn(x, t))
    return _twice(batch_mul(m_next, batch_mul(1 / m, x) + batch_mul(1 - below / level, to_data)))


def heun_second(
    x: Array, t: Array, z: Array | None, *, sde: SDE, score_fn: ScoreFn, memory: Memory
) -> tuple[Array, Array, Memory]:
    """Second stage of :func:`heun`, at the point that its Euler step reached: x̄' = x̄ + ½ (σ' − σ)(d + d')."""
    m, level = noise_level(sde, t)
    slope = batch_mul(-m * level, score_fn(x, t))
    start, first = memory.previous
    gap = level - jnp.exp(memory.log_level)
    x = batch_mul(m, start + batch_mul(gap / 2, first + slope))
    return x, x, memory


def _start_heun(x: Array) -> Memory:
    return Memory(jnp.zeros((2, *x.shape)), jnp.zeros(x.shape[:1]))


@register_predictor("heun", draws=0, second=heun_second, init_memory=_start_heun)
def heun(
    x: Array, t: Array, z: Array | None, *, sde: SDE, score_fn: ScoreFn, t_next: Array, memory: Memory
) -> tuple[Array, Array, Memory]:
    """Heun's method: an Euler step in σ, then the mean of the slopes at both ends; Args and Returns as :func:`ddim`.

    Two rows; the last step, to the data, is Euler's alone and one row.
    """
    (m, level), (m_next, below) = noise_level(sde, t), noise_level(sde, t_next)
    x_bar, slope = batch_mul(1 / m, x), batch_mul(-m * level, score_fn(x, t))
    x = batch_mul(m_next, x_bar + batch_mul(below - level, slope))
    return x, x, Memory(jnp.stack([x_bar, slope]), jnp.log(level))


@register_predictor("sde_dpmpp_2m", init_memory=Memory.empty)
def sde_dpmpp_2m(
    x: Array,
    t: Array,
    z: Array,
    *,
    sde: SDE,
    score_fn: ScoreFn,
    t_next: Array,
    memory: Memory,
    preconditioner: Preconditioner | None = None,
    variant: str = "paper",
) -> tuple[Array, Array, Memory]:
    """SDE-DPM-Solver++(2M) with M: x̄' = x̄ + (1 − ρ²) M Mᵀ (D̂ − x̄) + σ' √(1 − ρ²) M z, ρ = σ'/σ.

    D̂ = D + (h/2h₋)(D − D₋) for h = log(σ/σ') and D₋, h₋ of the step before, D itself in the first step and the last, to
    the data. That is the variant "paper"; "exact" leaves the
    probability flow's share alone: x̄' = x̄ + [(1 − ρ) + ρ (1 − ρ) M Mᵀ] (D̂ − x̄) + σ' √(1 − ρ²) M z.
    Args and Returns as :func:`ddim`, with the memory.
    """
    m_op = preconditioner or _IDENTITY
    (m, level), (m_next, below) = noise_level(sde, t), noise_level(sde, t_next)
    x_bar, ratio = batch_mul(1 / m, x), below / level
    guess, memory = _extrapolated(x_bar + batch_mul(m * jnp.square(level), score_fn(x, t)), level, below, memory)
    toward = guess - x_bar
    if variant == "exact":
        moved = batch_mul(1 - ratio, toward + batch_mul(ratio, m_op.drift(toward)))
    else:
        moved = batch_mul(1 - jnp.square(ratio), score_drift(toward, m_op, variant, False))
    x_mean = batch_mul(m_next, x_bar + moved)
    noise = batch_mul(m_next * below * jnp.sqrt(1 - jnp.square(ratio)), m_op.apply(z))
    return x_mean + noise, x_mean, memory


def adaptive(
    x: Array, *, sde: SDE, score_fn: ScoreFn, eps: Any, rtol: Any, atol: Any, max_steps: int = 4096
) -> tuple[Array, Array]:
    """Probability flow dx/dt = f(x, t) − ½ g(t)² s(x, t) from T to eps, by diffrax's Dopri5.

    Every image has its own steps; the tolerance holds for its worst pixel.

    Args:
      x: (B, H, W, C) float32 images at T.
      sde: SDE.
      score_fn: score function.
      eps: () last time.
      rtol: () relative tolerance.
      atol: () absolute tolerance.
      max_steps: steps after which the solver gives an image up.

    Returns:
      (B, H, W, C) images at eps and (B,) int32 evaluations of the score; NaN and GIVEN_UP if it was given up.
    """
    import diffrax  # only here: the fixed-step samplers do not need it

    def solve(start: Array, score_fn: ScoreFn) -> tuple[Array, Array]:
        own = checked(lay_out(score_fn, lambda tree: tree, lambda tree: jax.tree.map(lambda leaf: leaf[None], tree)))

        def velocity(t: Any, state: Array, _: Any) -> Array:
            return sde.reverse(own, probability_flow=True).sde(state[None], jnp.reshape(t, (1,)))[0][0]

        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(velocity),
            diffrax.Dopri5(),
            t0=jnp.float32(sde.T),
            t1=jnp.asarray(eps, jnp.float32),
            dt0=jnp.float32(-_FIRST_STEP * sde.T),
            y0=start,
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, norm=lambda e: jnp.max(jnp.abs(e))),
            max_steps=max_steps,
            throw=False,
        )
        solved = solution.result == diffrax.RESULTS.successful
        # Dopri5 reuses its last stage: six evaluations a step and one at the start.
        nfe = jnp.where(solved, 6 * solution.stats["num_steps"] + 1, GIVEN_UP).astype(jnp.int32)
        return jnp.where(solved, solution.ys[0], jnp.nan), nfe

    # What a score knows of each image, such as its class, is laid out as the images are.
    shared, own = (functools.partial(jax.tree.map, lambda _, axis=axis: axis) for axis in (None, 0))
    axes = lay_out(score_fn, shared, own)
    return jax.vmap(solve, in_axes=(0, axes))(x, score_fn)


def _twice(x: Array) -> tuple[Array, Array]:
    return x, x


def _extrapolated(denoised: Array, level: Array, below: Array, memory: Memory) -> tuple[Array, Memory]:
    """D + (h/2h₋)(D − D₋), D itself in the first step and the last."""
    h_before = memory.log_level - jnp.log(level)
    h = jnp.where(below > 0, jnp.log(level / jnp.where(below > 0, below, level)), 0.0)
    guess = denoised + batch_mul(h / (2 * h_before), denoised - memory.previous)
    return guess, Memory(denoised, jnp.log(level))


from pds_jax.solvers.adams import deis, ipndm, ipndm_v  # noqa: E402, F401
from pds_jax.solvers.churn import edm, restart  # noqa: E402, F401
from pds_jax.solvers.dpm import dpmpp_2m, dpmpp_3m, unipc  # noqa: E402, F401
from pds_jax.solvers.stochastic import er_sde, sa  # noqa: E402, F401
