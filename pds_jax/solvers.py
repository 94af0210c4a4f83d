"""Solvers that need few steps: of the probability flow, and of the reverse SDE with the data's own spectrum.

They step from any time t to any t_next, at last to the data (t_next = 0), in x̄ = x/m_t whose noise level is
σ̄ = std_t/m_t: there the three SDEs are one and the probability flow is dx̄/dσ̄ = (x̄ − D)/σ̄ with the denoiser
D = x̄ + σ̄² s̄, s̄ = m_t s(x, t) the score of x̄. Below, σ is the level at t and σ' the one at t_next.

    name               step                                                            exact for
    ddim               x̄' = x̄ + (1 − σ'/σ) (D − x̄)                                    one image
    heun               the trapezoidal rule on dx̄/dσ                                  –
    dpmpp_2m           ddim with D extrapolated from the last two                     –
    sde_dpmpp_2m       the same for the reverse SDE, with noise                       –
    spectral_ddim      x̄' = x̄ + c s̄, c = (P + σ²)(1 − √((P + σ'²)/(P + σ²)))          Gaussian data, any N
    spectral_ancestral x̄' = x̄ + (σ² − σ'²) s̄ + noise, see there                       Gaussian data, any N
    spectral_dpmpp_2m  the exponential integrator around the Gaussian flow, see there Gaussian data, any N

P is the data's power spectrum, per frequency; ddim is spectral_ddim with P = 0. The ordinary differential equations
have no noise for M to act on and refuse it. Sources: Song et al., "Denoising Diffusion Implicit Models", 2021; Karras
et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022 (heun); Lu et al., "DPM-Solver++",
2022; the spectral ones are derived, see docs/theory.md.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from pds_jax.ops import batch_mul
from pds_jax.preconditioner import Preconditioner, identity
from pds_jax.predictors import register_predictor, score_drift
from pds_jax.sde_lib import SDE
from pds_jax.spectral import Moments, filtered, noise_level, per_mode
from pds_jax.steps import Step
from pds_jax.types import Array, ScoreFn

_IDENTITY = identity()
GIVEN_UP = -(2**20)  # stands for the number of evaluations where the adaptive solver gives up
_FIRST_STEP = 1e-3  # of the adaptive solver, as a share of the time: so short that it is never rejected
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)


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
def ddim(
    x: Array, t: Array, z: Array | None, *, sde: SDE, score_fn: ScoreFn, t_next: Array
) -> tuple[Array, Array]:
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


@register_predictor("heun", draws=0, second=Step("predictor", "heun_second", heun_second, draws=0), start=_start_heun)
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


@register_predictor("dpmpp_2m", draws=0)
def dpmpp_2m(
    x: Array, t: Array, z: Array | None, *, sde: SDE, score_fn: ScoreFn, t_next: Array, memory: Memory
) -> tuple[Array, Array, Memory]:
    """DPM-Solver++(2M): ddim with D + (h/2h₋)(D − D₋) for D, h = log(σ/σ') and D₋, h₋ those of the step before.

    Args and Returns as :func:`ddim`, with the memory; the first step and the last, to the data, are ddim's.
    """
    (m, level), (m_next, below) = noise_level(sde, t), noise_level(sde, t_next)
    x_bar = batch_mul(1 / m, x)
    guess, memory = _extrapolated(x_bar + batch_mul(m * jnp.square(level), score_fn(x, t)), level, below, memory)
    ratio = below / level
    x = batch_mul(m_next, batch_mul(ratio, x_bar) + batch_mul(1 - ratio, guess))
    return x, x, memory


@register_predictor("sde_dpmpp_2m")
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

    D̂ is the extrapolated denoised image of :func:`dpmpp_2m`. That is the variant "paper"; "exact" leaves the
    probability flow's share alone: x̄' = x̄ + [(1 − ρ) + ρ (1 − ρ) M Mᵀ] (D̂ − x̄) + σ' √(1 − ρ²) M z.
    Args and Returns as :func:`dpmpp_2m`.
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


@register_predictor("spectral_ddim", draws=0)
def spectral_ddim(
    x: Array, t: Array, z: Array | None, *, sde: SDE, score_fn: ScoreFn, t_next: Array, moments: Moments
) -> tuple[Array, Array]:
    """Exact flow of Gaussian data: x̄' = x̄ + F⁻¹[c F s̄], c = (P + σ²)(1 − √((P + σ'²)/(P + σ²))).

    Args:
      x: (B, H, W, C) float32 images at t.
      t: (B,) times.
      z: unused.
      sde: SDE.
      score_fn: score function.
      t_next: (B,) times to step to; 0 is the data.
      moments: mean and power P of the data in the model's range.

    Returns:
      x at t_next, twice.
    """
    (m, level), (m_next, below) = noise_level(sde, t), noise_level(sde, t_next)
    s_bar = batch_mul(m, score_fn(x, t))
    return _twice(batch_mul(m_next, _gaussian_flow(batch_mul(1 / m, x), s_bar, level, below, moments)))


@register_predictor("spectral_ancestral")
def spectral_ancestral(
    x: Array,
    t: Array,
    z: Array,
    *,
    sde: SDE,
    score_fn: ScoreFn,
    t_next: Array,
    moments: Moments,
    preconditioner: Preconditioner | None = None,
    variant: str = "paper",
) -> tuple[Array, Array]:
    """The reverse step with the data's own covariance: E[x̄'|x̄] = x̄ + Δ s̄, Cov = Δ (P + σ'²)/(P + σ²), Δ = σ² − σ'².

    The mean is exact for any data, the covariance for Gaussian data; reverse diffusion has P = ∞, ancestral sampling
    P = 0. With M, the score's share is that of ``predictors.score_drift`` and the noise is multiplied by M.

    Args:
      x: (B, H, W, C) float32 images at t.
      t: (B,) times.
      z: (B, H, W, C) standard normal noise.
      sde: SDE.
      score_fn: score function.
      t_next: (B,) times to step to; 0 is the data.
      moments: mean and power P of the data in the model's range.
      preconditioner: M, None for the identity.
      variant: "paper" or "exact".

    Returns:
      x and x_mean at t_next.
    """
    m_op, p = preconditioner or _IDENTITY, jnp.asarray(moments[1])[None]
    (m, level), (m_next, below) = noise_level(sde, t), noise_level(sde, t_next)
    gap = (level - below) * (level + below)
    drift = score_drift(batch_mul(m, score_fn(x, t)), m_op, variant, False)
    x_mean = batch_mul(m_next, batch_mul(1 / m, x) + batch_mul(gap, drift))
    deviation = jnp.sqrt(per_mode(gap) * (p + per_mode(below) ** 2) / (p + per_mode(level) ** 2))
    return x_mean + batch_mul(m_next, m_op.apply(filtered(z, deviation))), x_mean


@register_predictor("spectral_dpmpp_2m", draws=0)
def spectral_dpmpp_2m(
    x: Array,
    t: Array,
    z: Array | None,
    *,
    sde: SDE,
    score_fn: ScoreFn,
    t_next: Array,
    moments: Moments,
    memory: Memory,
) -> tuple[Array, Array, Memory]:
    """Two-step exponential integrator whose linear part is the data's own, per frequency.

    With y = x̄ − μ, J = P/(P + σ²) and R = (D − μ) − J y the flow in u = log σ is dy/du = (1 − J) y − R, so

        y' = A y + c₀ R + c₁ (R − R₋)/h₋,  A = √((P + σ'²)/(P + σ²)),
        c_k = ∫ √((P + σ'²)/(P + e^{2u})) (log σ − u)^k du over log σ' < u < log σ.

    R vanishes for Gaussian data. P = 0 is DPM-Solver++(2M) to the order of its correction. The step to the data is
    that of :func:`spectral_ddim`, since R may not be held constant down to σ = 0.

    Args and Returns as :func:`spectral_ddim`, with the memory.
    """
    (m, level), (m_next, below) = noise_level(sde, t), noise_level(sde, t_next)
    x_bar, s_bar = batch_mul(1 / m, x), batch_mul(m, score_fn(x, t))
    mean, p = (jnp.asarray(v)[None] for v in moments)
    y, variance = x_bar - mean, per_mode(level) ** 2
    # D − μ − J y = y + σ² s̄ − P/(P + σ²) y
    residual = batch_mul(jnp.square(level), s_bar) + filtered(y, variance / (p + variance))
    last = below <= 0
    safe = jnp.where(last, level, below)
    c0, c1 = _coefficients(p, level, safe)
    h_before = memory.log_level - jnp.log(level)
    change = batch_mul(1 / h_before, residual - memory.previous)
    amplitude = jnp.sqrt((p + per_mode(safe) ** 2) / (p + variance))
    moved = mean + filtered(y, amplitude) + filtered(residual, c0) + filtered(change, c1)
    x_bar = jnp.where(per_mode(last), _gaussian_flow(x_bar, s_bar, level, below, moments), moved)
    x = batch_mul(m_next, x_bar)
    return x, x, Memory(residual, jnp.log(level))


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

    def velocity(t: Any, state: Array, _: Any) -> Array:
        return sde.reverse(score_fn, probability_flow=True).sde(state[None], jnp.reshape(t, (1,)))[0][0]

    def solve(start: Array) -> tuple[Array, Array]:
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

    return jax.vmap(solve)(x)


def _twice(x: Array) -> tuple[Array, Array]:
    return x, x


def _extrapolated(denoised: Array, level: Array, below: Array, memory: Memory) -> tuple[Array, Memory]:
    """D + (h/2h₋)(D − D₋), D itself in the first step and the last."""
    h_before = memory.log_level - jnp.log(level)
    h = jnp.where(below > 0, jnp.log(level / jnp.where(below > 0, below, level)), 0.0)
    guess = denoised + batch_mul(h / (2 * h_before), denoised - memory.previous)
    return guess, Memory(denoised, jnp.log(level))


def _gaussian_flow(x_bar: Array, s_bar: Array, level: Array, below: Array, moments: Moments) -> Array:
    """The step of :func:`spectral_ddim` on x̄."""
    p = jnp.asarray(moments[1])[None]
    total, total_below = p + per_mode(level) ** 2, p + per_mode(below) ** 2
    # (P + σ²)(1 − √q) = (σ² − σ'²)/(1 + √q), without the cancellation.
    gap = per_mode((level - below) * (level + below))
    return x_bar + filtered(s_bar, gap / (1 + jnp.sqrt(total_below / total)))


def _coefficients(p: Array, level: Array, below: Array) -> tuple[Array, Array]:
    """c₀ and c₁ of :func:`spectral_dpmpp_2m`, (B, H, W // 2 + 1, C), by Gauss–Legendre quadrature in log σ."""
    top, h = jnp.log(level), jnp.log(level / below)
    numerator = p + per_mode(below) ** 2

    def add(total: tuple[Array, Array], node: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        depth = h * node[0]
        value = per_mode(h * node[1]) * jnp.sqrt(numerator / (p + per_mode(jnp.exp(2 * (top - depth)))))
        return (total[0] + value, total[1] + value * per_mode(depth)), None

    zero = jnp.zeros_like(numerator)
    nodes = jnp.asarray((_NODES + 1) / 2, jnp.float32), jnp.asarray(_WEIGHTS / 2, jnp.float32)
    return jax.lax.scan(add, (zero, zero), nodes)[0]
