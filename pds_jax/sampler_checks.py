"""What a sampler refuses before any long work: options that no run could do, and settings that must diverge."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from pds_jax.correctors import NORMS, get_corrector
from pds_jax.preconditioner import Preconditioner, step_limit
from pds_jax.predictors import TRAITS, VARIANTS, get_predictor
from pds_jax.sde_lib import SDE, VESDE, VPSDE
from pds_jax.solvers import Memory
from pds_jax.time_grids import GRIDS
from pds_jax.types import Array, PdsError

PRIORS = ("standard", "matched")


def check_options(
    sde: SDE,
    *,
    predictor: str,
    corrector: str,
    snr: float,
    n_steps: int,
    preconditioner: Preconditioner,
    probability_flow: bool,
    variant: str,
    prior: str,
    norm: str,
    grid: str,
) -> None:
    """Refuse options of ``sampling.get_pc_sampler`` that do not exist or do not go together.

    Raises:
      PdsError: says which, and what would do.
    """
    get_predictor(predictor), get_corrector(corrector)
    check_names(variant=(variant, VARIANTS), prior=(prior, PRIORS), norm=(norm, tuple(NORMS)), grid=(grid, GRIDS))
    if predictor == corrector == "none":
        raise PdsError("predictor and corrector are both 'none': nothing would be sampled")
    if corrector != "none":
        if not 0 < float(snr) < math.inf:
            raise PdsError(f"snr={snr}: the corrector needs a finite number > 0 (0.16 is usual)")
        if int(n_steps) != n_steps or n_steps < 1:
            raise PdsError(f"n_steps={n_steps}: use an integer >= 1, or corrector 'none'")
    _check_predictor(sde, predictor, corrector, grid)
    _check_preconditioner(preconditioner, predictor, variant, probability_flow)
    if probability_flow and predictor not in ("reverse_diffusion", "euler_maruyama"):
        raise PdsError(
            f"predictor {predictor!r} has no probability_flow option; use reverse_diffusion or euler_maruyama, or a "
            "solver of that ODE (ddim, heun, dpmpp_2m)"
        )
    _check_betas(sde, predictor, corrector)


def check_names(**options: tuple[str, tuple[str, ...]]) -> None:
    """Refuse unknown names; each option is (value, known values).

    Raises:
      PdsError: lists the known ones.
    """
    for name, (value, known) in options.items():
        if value not in known:
            raise PdsError(f"unknown {name} {value!r}; known: {', '.join(known)}")


def image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """(H, W, C) from (H, W, C) or (B, H, W, C).

    Raises:
      PdsError: neither.
    """
    if len(shape) not in (3, 4) or any(int(s) != s or s < 1 for s in shape):
        raise PdsError(f"shape={tuple(shape)}: give (H, W, C) of one image, or (B, H, W, C)")
    height, width, channels = (int(s) for s in shape[-3:])
    return height, width, channels


def checked_moments(statistics: Any, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(mean, power) as float32 on the host, fit for images of a shape.

    Args:
      statistics: (mean, power) in the model's range, ``Statistics.to_range(config.data.centered)``.
      shape: (H, W, C).

    Returns:
      mean (H, W, C) and power (H, W // 2 + 1, C).

    Raises:
      PdsError: missing, of another shape, not finite, or a power that is not positive.
    """
    if statistics is None:
        raise PdsError("this sampler needs the data's statistics: pass --statistics (scripts/make_statistics.py)")
    if hasattr(statistics, "to_range"):
        raise PdsError("pass statistics in the model's range: statistics.to_range(config.data.centered)")
    mean, power = (np.asarray(v, np.float32) for v in statistics)
    height, width, channels = shape
    if mean.shape != shape or power.shape != (height, width // 2 + 1, channels):
        raise PdsError(f"the statistics are of images {mean.shape} with power {power.shape}, the sampler makes {shape}")
    if not (np.isfinite(mean).all() and np.isfinite(power).all() and power.min() > 0):
        raise PdsError("the statistics must be finite, and the power positive")
    return mean, power


def check_stability(sampler: Any, statistics: Any = None) -> float:
    """Refuse a sampler whose predictor must diverge.

    A step multiplies the error of a mode by 1 − q; for reverse diffusion of VE, variant "paper",
    q = λ_max(M Mᵀ) G²/(σ² + v) with v the mode's data variance. |1 − q| > 1 iff q > 2. The predictor itself is asked
    for its q at every time on Gaussian data of the least variance (0 without statistics); the number is what a quarter
    of the steps but the last exceed, since a few such steps are made good by the others.
    Derived, see docs/theory.md.

    Args:
      sampler: the sampler.
      statistics: (mean, power) in the model's range, or None.

    Returns:
      The number.

    Raises:
      PdsError: it exceeds 2.
    """
    largest = float(step_limit(sampler.preconditioner))
    variance = 0.0 if statistics is None else float(np.min(statistics[1]))
    names = sampler.predictor, sampler.variant, sampler.probability_flow
    q = 1 - np.asarray(_amplification(sampler.sde, sampler.times, jnp.float32(largest), jnp.float32(variance), *names))
    number = float(np.quantile(q[: max(int(sampler.steps) - 1, 1)], 0.75))
    if number > 2:
        raise PdsError(
            f"this setting diverges: lambda_max(M M^T) G^2 / (sigma^2 + v) = {number:.3g} exceeds 2 (lambda_max = "
            f"{largest:.3g}, N = {int(sampler.steps)}, predictor {sampler.predictor}); use a larger alpha or more steps"
        )
    return number


@flax.struct.dataclass
class _Gain:
    """M that multiplies by √λ."""

    lam: Array

    is_identity = True  # so that a probability flow may be asked too

    def apply(self, z: Array) -> Array:
        return jnp.sqrt(self.lam) * z

    def drift(self, g: Array) -> Array:
        return self.lam * g


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _amplification(
    sde: SDE, times: Array, lam: Array, variance: Array, predictor: str, variant: str, probability_flow: bool
) -> Array:
    """What one step multiplies a mode by, at each time but the last of the padding."""

    def score(x: Array, t: Array) -> Array:
        return -x / (jnp.square(sde.std(t)) + jnp.square(sde.mean_scale(t)) * variance)[:, None, None, None]

    ones = jnp.ones((times.shape[0] - 1, 1, 1, 1), jnp.float32)
    # Noise-free, so the drift alone answers; one pixel, so its spectrum is its variance.
    x_mean = get_predictor(predictor)(
        ones,
        jnp.asarray(times)[:-1],
        0 * ones,
        sde=sde,
        score_fn=score,
        preconditioner=_Gain(lam),
        probability_flow=probability_flow,
        variant=variant,
        t_next=jnp.asarray(times)[1:],
        moments=(0 * ones[0], variance * ones[0]),
        memory=Memory.empty(ones),
    )[1]
    return x_mean[:, 0, 0, 0]


def _check_predictor(sde: SDE, predictor: str, corrector: str, grid: str) -> None:
    traits = TRAITS[predictor]
    if not traits.any_grid and grid != "uniform":
        raise PdsError(f"predictor {predictor!r} steps through the SDE's own levels: use grid 'uniform', not {grid!r}")
    if traits.multistep and corrector != "none":
        raise PdsError(
            f"predictor {predictor!r} compares two steps, between which corrector {corrector!r} would put its noise: "
            "use corrector 'none', or a predictor of one step (ddim, heun, spectral_ddim)"
        )
    if predictor == "ancestral_sampling" and not isinstance(sde, VESDE | VPSDE):
        raise PdsError(f"ancestral_sampling has no form for {type(sde).__name__}; use reverse_diffusion")


def _check_preconditioner(m: Preconditioner, predictor: str, variant: str, probability_flow: bool) -> None:
    if m.is_identity or predictor == "none":
        return
    if not TRAITS[predictor].preconditioned:
        raise PdsError(
            f"predictor {predictor!r} solves an ordinary differential equation, which has no noise for M to act on: "
            "use alpha=inf, or a predictor with noise (sde_dpmpp_2m, spectral_ancestral, reverse_diffusion)"
        )
    if probability_flow and variant == "exact":
        raise PdsError("the exact probability flow has no noise for M to act on; use variant 'paper' or alpha=inf")


def _check_betas(sde: SDE, predictor: str, corrector: str) -> None:
    """Refuse β_i > 1 where 1 − β_i is used; at β_i = 1 ancestral sampling alone divides by zero."""
    if isinstance(sde, VESDE):
        return
    uses_alpha = corrector != "none" or (predictor == "reverse_diffusion" and isinstance(sde, VPSDE))
    largest = float(np.asarray(sde.discrete_betas).max())  # type: ignore[attr-defined]
    if (uses_alpha and largest > 1) or (predictor == "ancestral_sampling" and largest >= 1):
        raise PdsError(
            f"{type(sde).__name__} with N={int(sde.N)} levels has beta_max/N = {largest:.3g}, but predictor "
            f"{predictor!r} with corrector {corrector!r} needs 1 - beta_i: use more steps (a smaller speed_up, N > "
            f"{float(sde.beta_1):g}), or predictor euler_maruyama with corrector none"  # type: ignore[attr-defined]
        )
