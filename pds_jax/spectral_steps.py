"""The spectral family: steps that are exact for Gaussian data with the mean and the spectrum of the data.

In x̄ = x/m_t, with noise level s at t and s' at t_next, v = s², y = x̄ − μ, J = P/(P + v), the denoiser D = x̄ + v s̄ and
the residual R = (D − μ) − J y, all per frequency,

    y' = A y + C R̂ + √N z,    q = (P + s'²)/(P + s²),    A = q^((1+λ)/2),    N = (P + s'²)(1 − q^λ),
    C = (1+λ) ∫ ((P + s'²)/(P + e^{2u}))^((1+λ)/2) du  over log s' < u < log s,

for any stochasticity λ ≥ 0: 0 is the probability flow, 1 the reverse SDE, m² the flow with Langevin dynamics of M.
R vanishes for Gaussian data, whose mean and variance are therefore exact at any number of steps. P = 0 is DPM-Solver++.
R̂ is R, or extrapolated from two. R vanishes with v, so the step to the data, and the one-level steps, hold R/(1 − J)
constant instead: C = (1 − A)/(1 − J). Derived, see docs/theory.md.

    name                λ          R̂                          C
    spectral            any        R + κ h/(2h₋)(R − R₋)      integral
    spectral_dpmpp_2m   0          its line through R, R₋     integral
    spectral_ddim       0          R                          (1 − A)/(1 − J)
    spectral_ancestral  1          R                          (1 − A)/(1 − J)
    langevin_exact      corrector: M's Langevin dynamics at one level
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pds_jax.correctors import register_corrector
from pds_jax.filters import check_even
from pds_jax.ops import batch_mul
from pds_jax.preconditioner import Preconditioner, identity
from pds_jax.predictors import register_predictor, score_drift
from pds_jax.sde_lib import SDE
from pds_jax.solvers import Memory
from pds_jax.spectral import Moments, from_modes, modewise, noise_level, parts, per_mode, scaled, to_modes
from pds_jax.table import Row
from pds_jax.types import Array, PdsError, ScoreFn

_IDENTITY = identity()
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_PANEL = 24.0  # largest (1+λ) h of a panel of the quadrature, which then errs by less than float32 does
_SMALLEST = 1e-34  # stands for q = 0, of a mode without data in the step to the data


class _State(NamedTuple):
    """One evaluation, in modes: F of the channels, rotated to the basis of P where there is one.

    Attributes:
      y: (B, H, W // 2 + 1, C) complex64, F(x̄ − μ).
      residual: likewise, R.
      p: (1, H, W // 2 + 1, C) P.
      mean: (1, H, W, C) μ.
      basis: (C, C), or None.
      level: (B,) s.
      below: (B,) s'.
      m_next: (B,) m at t_next.
    """

    y: Array
    residual: Array
    p: Array
    mean: Array
    basis: Array | None
    level: Array
    below: Array
    m_next: Array

    @property
    def log_q(self) -> Array:
        """log((P + s'²)/(P + s²)) per mode."""
        gap = per_mode((self.level - self.below) * (self.level + self.below))
        total, total_below = self.p + per_mode(self.level) ** 2, self.p + per_mode(self.below) ** 2
        # Each form is accurate where the other cancels.
        large = jnp.log(jnp.maximum(total_below / total, _SMALLEST))
        return jnp.where(2 * gap > total, large, jnp.log1p(-jnp.minimum(gap / total, 0.5)))

    def modes(self, x: Array) -> Array:
        """Modes of images x (B, H, W, C)."""
        return to_modes(x, self.basis)

    def memory(self) -> Memory:
        """R, as images, and s, for the next step."""
        return Memory(from_modes(self.residual, self.mean.shape[2], self.basis), jnp.log(self.level))

    def images(self, modes: Array) -> Array:
        """Images at t_next of modes of y'."""
        return batch_mul(self.m_next, self.mean + from_modes(modes, self.mean.shape[2], self.basis))

    def noisy(self, x_mean: Array, z: Array | None, variance: Array) -> Array:
        """x_mean plus noise of a variance per mode, made of z; x_mean itself without z."""
        if z is None:
            return x_mean
        noise = from_modes(scaled(jnp.sqrt(variance), self.modes(z)), z.shape[2], self.basis)
        return x_mean + batch_mul(self.m_next, noise)


def _evaluated(
    x: Array, t: Array, t_next: Array, sde: SDE, score_fn: ScoreFn, moments: Moments, share: float | Array = 1.0
) -> _State:
    """The score at (x, t), in modes; P is multiplied by `share`."""
    (m, level), (m_next, below) = noise_level(sde, t), noise_level(sde, t_next)
    mean, power, basis = parts(moments)
    p, variance = share * power, per_mode(level) ** 2
    y = to_modes(batch_mul(1 / m, x) - mean, basis)
    # D − μ − J y = v s̄ + (1 − J) y, without the cancellation at small v.
    residual = to_modes(batch_mul(m * jnp.square(level), score_fn(x, t)), basis) + scaled(variance / (p + variance), y)
    return _State(y, residual, p, mean, basis, level, below, m_next)


def eigenvalues(m: Preconditioner | None) -> Array:
    """m², the eigenvalues of M Mᵀ per mode; (1, H, W // 2 + 1, C) or a number.

    Raises:
      PdsError: M is not diagonal in frequency (a pixel filter), or has a solenoidal term.
    """
    if m is None or m.is_identity:
        return jnp.float32(1)
    if m.skew is not None or (m.space is not None and math.prod(m.space.shape) > 1):
        raise PdsError("M is integrated per frequency: use filters 'freq' or 'flat', and no solenoidal term")
    flat = jnp.float32(1) if m.space is None else jnp.square(m.space[0, 0, 0])
    return flat if m.freq is None else flat * jnp.square(m.freq)[None]


def _check_options(options: dict[str, Any], m: Preconditioner, shape: tuple[int, int, int]) -> None:
    """Refuse values of the family's options that are out of range, and an M that is not diagonal in frequency.

    Raises:
      PdsError: names the option.
    """
    eigenvalues(m)
    plane = (shape[0], shape[1] // 2 + 1, shape[2])
    lam = options.get("stochasticity", 0.0)
    if isinstance(lam, str) and lam != "M":
        raise PdsError(f"stochasticity={lam!r}: use a number >= 0 (0 the flow, 1 the reverse SDE), or 'M'")
    if "stochasticity" in options and not isinstance(lam, str) and not m.is_identity:
        raise PdsError(f"stochasticity={lam}: M enters this predictor as its stochasticity: use 'M', or alpha=inf")
    for name, low, high in (("stochasticity", 0, math.inf), ("spectrum", 0, 1), ("kappa", 0, math.inf)):
        value = options.get(name, 0.0)
        if name == "stochasticity" and isinstance(lam, str):
            continue
        array = np.asarray(math.nan if isinstance(value, str) else value, np.float64)
        of_mode = array.ndim == 0 or (name != "kappa" and array.shape in (plane, (*plane[:2], 1)))
        if not of_mode or not np.all((array >= low) & (array <= high) & np.isfinite(array)):
            shapes = "one" if name == "kappa" else f"one, or {plane}"
            raise PdsError(f"{name}={value}: use finite numbers ({shapes}) from {low} to {high}")
        if array.ndim:
            check_even(array, shape[1], name)


@register_predictor("spectral", init_memory=Memory.empty, has_stability_limit=False, validate=_check_options)
def spectral(
    x: Array,
    t: Array,
    z: Array | None,
    *,
    sde: SDE,
    score_fn: ScoreFn,
    t_next: Array,
    moments: Moments,
    memory: Memory,
    row: Row | None = None,
    preconditioner: Preconditioner | None = None,
    stochasticity: float | Array | str = 0.0,
    spectrum: float | Array = 1.0,
    kappa: float | Array = 1.0,
) -> tuple[Array, Array, Memory]:
    """One step of the family, with R̂ = R + κ h/(2h₋)(R − R₋), h = log(s/s').

    Args:
      x: (B, H, W, C) float32 images at t.
      t: (B,) times.
      z: (B, H, W, C) standard normal noise, or None for none.
      sde: SDE.
      score_fn: score function.
      t_next: (B,) times to step to; 0 is the data.
      moments: mean, power P and perhaps basis of the data in the model's range.
      memory: R₋ and its level.
      row: its coefficients, where there are any, multiply y' per ring of frequency, see ``pilot``.
      preconditioner: M, which λ = "M" is made of.
      stochasticity: λ ≥ 0, one number or (H, W // 2 + 1, C); or "M" for m².
      spectrum: what P is multiplied by in the step, 0 to 1, one number or (H, W // 2 + 1, C).
      kappa: κ; 1 is second order, less is damped.

    Returns:
      x and x_mean at t_next, and the memory.
    """
    at = _evaluated(x, t, t_next, sde, score_fn, moments, modewise(spectrum))
    lam = eigenvalues(preconditioner) if isinstance(stochasticity, str) else modewise(stochasticity)
    guess, memory = _extrapolated(at, memory, kappa)
    moved = _moved(at, lam, scaled(_weights(at, lam)[0], guess))
    if row is not None and row.coefficients.shape[-1]:
        moved = scaled(ring_gains(row.coefficients, moved.shape[1:3]), moved)
    x_mean = at.images(moved)
    return at.noisy(x_mean, z, _added(at, lam)), x_mean, memory


@register_predictor("spectral_dpmpp_2m", draws=0, init_memory=Memory.empty)
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
    """λ = 0 with the line through R and R₋ integrated; Args and Returns as :func:`spectral`."""
    at = _evaluated(x, t, t_next, sde, score_fn, moments)
    c0, c1 = _weights(at, 0.0)
    slope = scaled(per_mode(1 / (memory.log_level - jnp.log(at.level))), at.residual - at.modes(memory.previous))
    x = at.images(_moved(at, 0.0, scaled(c0, at.residual) + scaled(c1, slope)))
    return x, x, at.memory()


@register_predictor("spectral_ddim", draws=0)
def spectral_ddim(
    x: Array, t: Array, z: Array | None, *, sde: SDE, score_fn: ScoreFn, t_next: Array, moments: Moments
) -> tuple[Array, Array]:
    """x̄' = x̄ + c s̄, c = (P + s²)(1 − √q): λ = 0 at one level; Args and Returns as :func:`spectral`."""
    at = _evaluated(x, t, t_next, sde, score_fn, moments)
    x = at.images(_moved(at, 0.0, scaled(_last_weight(at, 0.0), at.residual)))
    return x, x


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
    """The reverse step with the data's own covariance: E[x̄'|x̄] = x̄ + Δ s̄, Cov = Δ (P + s'²)/(P + s²), Δ = s² − s'².

    λ = 1 at one level: the mean is exact for any data, the covariance for Gaussian data; reverse diffusion has P = ∞,
    ancestral sampling P = 0. M enters as in ``predictors.score_drift``, and multiplies the noise.
    Args and Returns as :func:`spectral`, and

    Args:
      variant: "paper" or "exact".
    """
    m_op = preconditioner or _IDENTITY
    (m, level), (_, below) = noise_level(sde, t), noise_level(sde, t_next)
    at = _evaluated(x, t, t_next, sde, score_fn, moments)
    drift = score_drift(batch_mul(m, score_fn(x, t)), m_op, variant, False)
    x_mean = batch_mul(at.m_next, batch_mul(1 / m, x) + batch_mul((level - below) * (level + below), drift))
    noise = at.noisy(jnp.zeros_like(x), z, _added(at, 1.0))
    return x_mean + m_op.apply(noise), x_mean


@register_corrector("langevin_exact", validate=_check_options)
def langevin_exact(
    x: Array,
    t: Array,
    z: Array,
    *,
    sde: SDE,
    score_fn: ScoreFn,
    moments: Moments,
    preconditioner: Preconditioner | None = None,
    snr: float | Array,
    spectrum: float | Array = 1.0,
) -> tuple[Array, Array]:
    """Langevin dynamics with M for a time θ = 2 snr² s² at the level s, integrated exactly where the data are Gaussian.

        y' = a y + (1 − a)/(1 − J) R + √((P + s²)(1 − a²)) z,    a = exp(−θ m²/(P + s²)),

    to first order in θ the Langevin step of size θ. |a| < 1 whatever snr and M are, so no setting is unstable.
    Args and Returns as :func:`spectral`, and

    Args:
      snr: signal-to-noise ratio, () float32.
    """
    at = _evaluated(x, t, t, sde, score_fn, moments, modewise(spectrum))
    total = at.p + per_mode(at.level) ** 2
    keep = per_mode(at.level) ** 2 / total
    log_a = -2 * jnp.square(snr) * eigenvalues(preconditioner) * keep
    x_mean = at.images(scaled(jnp.exp(log_a), at.y) + scaled(-jnp.expm1(log_a) / keep, at.residual))
    return at.noisy(x_mean, z, total * -jnp.expm1(2 * log_a)), x_mean


def rings(plane: tuple[int, ...]) -> np.ndarray:
    """(H, W // 2 + 1) number of the ring of each frequency of a half plane, |k| rounded."""
    vertical, horizontal = np.fft.fftfreq(plane[0]) * plane[0], np.arange(plane[1])
    return np.rint(np.hypot(vertical[:, None], horizontal[None])).astype(np.int32)


def ring_gains(gains: Array, plane: tuple[int, ...]) -> Array:
    """(K,) gains per ring -> (1, H, W // 2 + 1, 1); rings beyond the last have the last one's."""
    which = np.minimum(rings(plane), gains.shape[0] - 1)
    return gains[which][None, :, :, None]


def _moved(at: _State, lam: Array | float, pull: Array) -> Array:
    """A y + pull."""
    return scaled(jnp.exp((1 + lam) / 2 * at.log_q), at.y) + pull


def _added(at: _State, lam: Array | float) -> Array:
    """N."""
    return (at.p + per_mode(at.below) ** 2) * -jnp.expm1(lam * at.log_q)


def _last_weight(at: _State, lam: Array | float) -> Array:
    """(1 − A)/(1 − J)."""
    variance = per_mode(at.level) ** 2
    return -jnp.expm1((1 + lam) / 2 * at.log_q) * (at.p + variance) / variance


def _extrapolated(at: _State, memory: Memory, kappa: float | Array) -> tuple[Array, Memory]:
    """R̂; R itself in the first step and in the last."""
    h = jnp.where(at.below > 0, jnp.log(at.level / jnp.where(at.below > 0, at.below, at.level)), 0.0)
    factor = kappa * h / (2 * (memory.log_level - jnp.log(at.level)))
    return at.residual + scaled(per_mode(factor), at.residual - at.modes(memory.previous)), at.memory()


def _weights(at: _State, lam: Array | float) -> tuple[Array, Array]:
    """C, and the integral with the depth log s − u in it; the step to the data has C = (1 − A)/(1 − J) and 0."""
    last = per_mode(at.below <= 0)
    c0, c1 = integrals(at.p, at.level, jnp.where(at.below <= 0, at.level, at.below), lam)
    return jnp.where(last, _last_weight(at, lam), c0), jnp.where(last, 0.0, c1)


def integrals(p: Array, level: Array, below: Array, lam: Array | float) -> tuple[Array, Array]:
    """(1+λ) ∫ ((P + s'²)/(P + e^{2u}))^((1+λ)/2) (log s − u)^k du over log s' < u < log s for k = 0, 1.

    Gauss–Legendre quadrature over v = u − log s', in as many panels as a large λ needs. For k = 0, λ = 0 it is
    √((P + s'²)/P) (asinh(√P/s') − asinh(√P/s)), for λ = 1 (P + s'²)/P log(s² (P + s'²)/(s'² (P + s²))).

    Args:
      p: (B or 1, H, W // 2 + 1, C) P.
      level: (B,) s.
      below: (B,) s' > 0.
      lam: λ, a number or shaped as p.

    Returns:
      Both, (B, H, W // 2 + 1, C).
    """
    h, share = jnp.log(level / below), per_mode(below) ** 2 / (p + per_mode(below) ** 2)
    panels = jnp.maximum(jnp.ceil((1 + jnp.max(jnp.asarray(lam))) * jnp.max(h) / _PANEL), 1)
    nodes = jnp.asarray((_NODES + 1) / 2, jnp.float32), jnp.asarray(_WEIGHTS / 2, jnp.float32)

    def add_panel(panel: Array, total: tuple[Array, Array]) -> tuple[Array, Array]:
        def add(total: Any, node: Any) -> tuple[Any, None]:
            v = per_mode(h * ((panel + node[0]) / panels))
            inside = jnp.exp(-(1 + lam) / 2 * jnp.log1p(share * jnp.expm1(2 * v)))
            value = (1 + lam) * per_mode(h * (node[1] / panels)) * inside
            return (total[0] + value, total[1] + value * (per_mode(h) - v)), None

        return jax.lax.scan(add, total, nodes)[0]

    zero = jnp.zeros(jnp.broadcast_shapes(share.shape, jnp.shape(lam)), jnp.float32)
    return jax.lax.fori_loop(0, panels.astype(jnp.int32), add_panel, (zero, zero))
