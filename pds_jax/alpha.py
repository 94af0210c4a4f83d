"""The strength of M for a given number of iterations, in closed form: α(N) and the variance recursion behind it.

Everything here is arithmetic on the host in float64; no image is sampled and no network is called. Derived, see
docs/theory.md. If there is a network, α from a few of its samples (alpha="tune") is more accurate.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from pds_jax.types import PdsError

_SCALES = 1000  # the number of scales that eps is tied to by speed_up, eps = eps0 · scales / N
_ALPHAS = (*np.geomspace(1.5, 200, 60), math.inf)
CANDIDATES = (2.5, 4.0, 7.0, 15.0, math.inf)
MOST_TRIALS = 2 * (len(CANDIDATES) + 2) - 1  # of alpha="tune": both kinds of M, which have α = ∞ in common
TUNE_NFE = 40  # of the samples that alpha="tune" compares with
TUNE_RULE = 2  # version of the rule; increase it when the rule changes, so that stored cells are measured again
CHOSEN = ("auto", "tune")


def parse_alpha(value: float | str) -> float | str:
    """A strength as a number above 1, infinity for no PDS, or "auto" or "tune".

    >>> parse_alpha("5"), parse_alpha("inf"), parse_alpha("auto")
    (5.0, inf, 'auto')

    Args:
      value: a number, or text.

    Returns:
      The number, or "auto" or "tune".

    Raises:
      PdsError: a number ≤ 1, NaN, or other text.
    """
    try:
        number = value if value in CHOSEN else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(number, str) or number > 1:
        return number
    raise PdsError(f"alpha={value}: use a number above 1 (the papers use 5), auto, tune, or inf for no PDS")


def alpha_auto(
    sde: Any,
    N: int,  # noqa: N803
    corrector: bool = False,
    snr: float = 0.16,
    n_steps: int = 1,
    stats: Any = None,
    centered: bool = True,
) -> float:
    """The α for N iterations of the paper's sampler.

    VE: with r = (σ_{i−1}/σ_i)² = (σ_min/σ_max)^{2/(N−1)}, a mode dominated by noise lags behind the noise level by a
    factor 1/r in variance; the gain m = √λ of :func:`best_gain` removes that, and α = m / (m − 1) makes m the largest
    gain of the filter. VP and subVP have no such constant r: there α is :func:`gaussian_alpha` of the data's spectrum,
    or without statistics of a 1/|k|² one at 32 x 32 pixels.

    Args:
      sde: the SDE.
      N: number of iterations, ≥ 2.
      corrector: whether each iteration has Langevin steps.
      snr: signal-to-noise ratio of the Langevin steps.
      n_steps: Langevin steps per iteration.
      stats: statistics of the data, used for VP and subVP.
      centered: for VP and subVP: whether the model works in [-1, 1] instead of [0, 1]; ignored for VE.

    Returns:
      α > 1; infinity where M = I is best.

    Raises:
      PdsError: N < 2, a corrector with snr ≥ 1, or VP or subVP with too few iterations for any α.
    """
    if corrector and snr >= 1:
        raise PdsError(f"alpha=auto: Langevin steps of snr={snr:g} have no stationary variance; use an snr below 1")
    if N < 2:
        raise PdsError(f"alpha=auto needs at least N=2 iterations, got N={N}; use a smaller speed_up")
    if not hasattr(sde, "sigma_max"):
        power, r_f = _natural_image() if stats is None else _of_statistics(stats)
        return gaussian_alpha(sde, N, (4 if centered else 1) * power, r_f, corrector, snr, n_steps)
    r = math.exp(2 * math.log(float(sde.sigma_min) / float(sde.sigma_max)) / (N - 1))
    gain = math.sqrt(best_gain(r, snr if corrector else 0.0, n_steps))
    return gain / (gain - 1) if gain > 1 else math.inf


def choose(errors: Mapping[float, float], slack: float = 0.15) -> float:
    """The middle of the strengths whose error is within `slack` of the least; infinity if it is among them.

    Errors from few samples are noisy. If the curve is flat near its minimum, the middle of the flat part is a better
    estimate of the best α than the candidate with the least error. A sharp minimum is its own middle.

    Args:
      errors: α -> error of its samples, > 0.
      slack: relative.

    Returns:
      One of the α; of an even number the stronger of the two in the middle.
    """
    least = min(errors.values())
    good = sorted(alpha for alpha, error in errors.items() if error <= (1 + slack) * least)
    if math.isinf(good[-1]):  # as good without M
        return math.inf
    return good[(len(good) - 1) // 2]


def search(error: Callable[[float], float | None], alphas: Sequence[float] = CANDIDATES) -> float:
    """The α of least error: the candidates first, then those half way to the neighbours of the best (:func:`choose`).

    Args:
      error: α -> error of its samples, > 0, or None if the sampler diverges.
      alphas: candidates.

    Returns:
      α, by :func:`choose` of all that were tried.

    Raises:
      PdsError: the sampler diverges with every candidate.
    """
    errors: dict[float, float] = {}

    def attempt(some: Sequence[float]) -> None:
        errors.update({alpha: found for alpha in some if (found := error(alpha)) is not None})

    attempt(alphas)
    if not errors:
        raise PdsError("alpha=tune: the sampler diverges with every alpha; use more steps (a larger nfe)")
    attempt(between(errors, choose(errors)))
    return choose(errors)


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What :func:`tune` chose.

    Attributes:
      alpha: strength of M, infinity for none or a flat one.
      gain: c where M = c I is better than any M of the statistics, else None.
      said: in words.
    """

    alpha: float
    gain: float | None
    said: str


def tune(
    error: Callable[[float, bool], float | None],
    alphas: Sequence[float] = CANDIDATES,
    kinds: Sequence[bool] = (False, True),
) -> Tuned:
    """The better of the best α and the best flat M, the same strengths of both tried.

    Args:
      error: (α, whether M is flat) -> error of its samples, > 0, or None if the sampler diverges. A flat M has the gain
        :func:`largest_gain` of α.
      alphas: candidates.
      kinds: the kinds of M to try: False for those of the statistics, True for flat ones.

    Returns:
      The choice, with its reason.

    Raises:
      PdsError: the sampler diverges with every candidate of a kind.
    """
    tried: dict[tuple[float, bool], float | None] = {}

    def once(flat: bool, alpha: float) -> float | None:
        key = alpha, flat and not math.isinf(alpha)  # without M the two are one
        if key not in tried:
            tried[key] = error(*key)
        return tried[key]

    best = {flat: search(functools.partial(once, flat), alphas) for flat in kinds}
    flat = min(best, key=lambda kind: once(kind, best[kind]) or 0.0)
    names = {kind: _named(best[kind], kind) for kind in best}
    said = names[flat]
    if len(set(names.values())) > 1:
        said += f", whose samples are nearer to those of many steps than with {names[not flat]}"
    if flat and math.isfinite(best[True]):
        return Tuned(math.inf, largest_gain(best[True]), said)
    return Tuned(best[flat], None, said)


def _named(alpha: float, flat: bool) -> str:
    if math.isinf(alpha):
        return "no M"
    return f"flat M = {largest_gain(alpha):.4g} I" if flat else f"alpha={alpha:.4g}"


def largest_gain(alpha: float) -> float:
    """α/(α − 1), the largest gain of a filter of strength α; as M = c I, the flat M of that strength.

    Args:
      alpha: α > 1, or infinity.

    Returns:
      The gain, ≥ 1.

    >>> largest_gain(5.0), largest_gain(math.inf)
    (1.25, 1.0)
    """
    return 1.0 if math.isinf(alpha) else alpha / (alpha - 1)


def between(tried: Collection[float], best: float) -> list[float]:
    """Midpoints, in log(α − 1), between the best of the tried strengths and its neighbours; none beyond the ends.

    The neighbour ∞ has no midpoint: there α − 1 doubles.

    Args:
      tried: strengths, > 1.
      best: one of them.

    Returns:
      Up to two strengths.
    """
    ordered = sorted(tried)
    at = ordered.index(best)
    middle = []
    for low, high in zip(ordered[max(at - 1, 0) :], ordered[max(at - 1, 0) + 1 : at + 2], strict=False):
        step = 2.0 if math.isinf(high) else math.sqrt((high - 1) / (low - 1))
        middle.append(1 + (low - 1) * step)
    return middle


def best_gain(r: float, snr: float = 0.0, n_steps: int = 1) -> float:
    """Eigenvalue λ = m² of M Mᵀ for which a noise-dominated mode lags least behind the noise level.

    With q = 1 − r, w = 1 − λ q, e = 2 snr², k = (1 − e)^{2 n_steps} and c_L = 2 / (2 − e), the fixed point of the
    Langevin steps alone, the variance c σ² before each iteration settles at
        c = (c_L (1 − k) w² + 1 − w) / (r − k w²).
    It equals c_L for w = [1 + √(1 − 4 c_L (1 − c_L r))] / (2 c_L) if that is real, else it is least at the smaller
    root of k w² − 2 (c_L (1 − k) r + k) w + r = 0. Without a corrector these are q λ² − λ + 1 = 0, real iff q ≤ 1/4,
    and λ = 1/√q.

    Args:
      r: (σ_{i−1} / σ_i)² in (0, 1).
      snr: of the Langevin steps, 0 for none.
      n_steps: Langevin steps per iteration.

    Returns:
      λ ≥ 1.
    """
    e = 2 * snr * snr
    keep, fixed = (1 - e) ** (2 * n_steps), 2 / (2 - e)
    root = 1 - 4 * fixed * (1 - fixed * r)
    if root >= 0:
        w = (1 + math.sqrt(root)) / (2 * fixed)
    else:
        half = fixed * (1 - keep) * r + keep
        w = (half - math.sqrt(half * half - keep * r)) / keep
    return max(1.0, (1 - w) / (1 - r))


def gaussian_alpha(
    sde: Any,
    N: int,  # noqa: N803
    power: np.ndarray,
    r_f: np.ndarray,
    corrector: bool = False,
    snr: float = 0.16,
    n_steps: int = 1,
) -> float:
    """The α with which the paper's sampler ends nearest to Gaussian data of a given spectrum.

    Nearest is the least Σ_k (√V_k − √P_k)², the Wasserstein-2 distance of the two laws, with V_k from
    :func:`final_variance` and the frequency filter R = α / (r_f / max r_f + α − 1).

    Args:
      sde: the SDE.
      N: number of iterations.
      power: P of the modes in the model's range, any shape.
      r_f: raw statistics log(1 + mean |F x|²) of the same modes.
      corrector: whether each iteration has Langevin steps.
      snr: signal-to-noise ratio of the Langevin steps.
      n_steps: Langevin steps per iteration.

    Returns:
      α, infinity where M = I is best.

    Raises:
      PdsError: the recursion is not finite for any α (VP below N = β_max).
    """
    alphas = np.array(_ALPHAS)
    power, raw = power.reshape(1, -1), r_f.reshape(1, -1) / r_f.max()
    gains = (1 / (1 + (raw - 1) / alphas[:, None])) ** 2
    with np.errstate(all="ignore"):
        variance = final_variance(sde, N, power, gains, snr if corrector else 0.0, n_steps)
        distance = np.square(np.sqrt(variance) - np.sqrt(power)).sum(axis=1)
    if not np.isfinite(distance).any():
        raise PdsError(f"alpha=auto: the sampler is not finite at N={N} with any alpha; use more iterations")
    return float(alphas[np.nanargmin(distance)])


def final_variance(
    sde: Any,
    N: int,  # noqa: N803
    power: np.ndarray,
    gains: np.ndarray,
    snr: float = 0.0,
    n_steps: int = 1,
) -> np.ndarray:
    """Variance of every mode after the paper's sampler on Gaussian data with the exact score, by :func:`final_law`.

    Args:
      sde: the SDE, discretised here with N scales.
      N: number of iterations.
      power: (..., K) P of the modes in the model's range.
      gains: (..., K) eigenvalues λ of M Mᵀ.
      snr: of the Langevin steps, 0 for none.
      n_steps: Langevin steps per iteration.

    Returns:
      (..., K) variances.
    """
    level = sde.with_num_scales(N)
    t = np.linspace(1.0, level.default_eps * _SCALES / N, N).astype(np.float32)
    f, diffusion = level.discretize(np.ones((N, 1, 1, 1), np.float32), t)
    columns = (f[:, 0, 0, 0], diffusion, level.mean_scale(t), level.std(t), level.alphas_at(t))
    drift, g, scale, std, langevin = (np.asarray(column, np.float64) for column in columns)
    schedule = Schedule(drift, g**2, scale, std, langevin, float(level.prior_std))
    return final_law(schedule, power, gains, snr, n_steps)[0]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The numbers of an SDE that the paper's sampler uses, float64, in the order of its N iterations.

    Attributes:
      drift: (N,) f of ``sde.discretize``, divided by x.
      diffusion: (N,) its G².
      mean_scale: (N,) m_t.
      std: (N,) std_t.
      alphas: (N,) factor a_t of the Langevin step size.
      prior_std: deviation of the prior.
    """

    drift: np.ndarray
    diffusion: np.ndarray
    mean_scale: np.ndarray
    std: np.ndarray
    alphas: np.ndarray
    prior_std: float


def final_law(
    schedule: Schedule,
    power: np.ndarray,
    gains: np.ndarray,
    snr: float = 0.0,
    n_steps: int = 1,
    offset: np.ndarray | float = 0.0,
    count: np.ndarray | float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Variance V and offset b of every mode after the paper's sampler on Gaussian data with the exact score.

    V ← (1 − ε λ/A)² V + 2 ε λ for each Langevin step, ε = 2 a (snr)² Σλ / Σ(λ² (V + b)/A²), and then
    V ← (1 − λ (f + G²/A))² V + G² λ for the predictor, without its noise in the last iteration; A = m_t² P + std².
    b, the squared distance of the mean from the data's, is multiplied as V and gets no noise. Derived.

    Args:
      schedule: of the SDE and N.
      power: (..., K) P of the modes in the model's range.
      gains: (..., K) eigenvalues λ of M Mᵀ.
      snr: of the Langevin steps, 0 for none.
      n_steps: Langevin steps per iteration.
      offset: (K,) b at the start: the squared mean of the data.
      count: (K,) how many modes are like each one.

    Returns:
      (..., K) each.
    """
    variance, factor = gains * schedule.prior_std**2, np.ones_like(gains)
    last = len(schedule.std) - 1
    for i in range(last + 1):
        marginal = schedule.mean_scale[i] ** 2 * power + schedule.std[i] ** 2
        for _ in range(n_steps if snr else 0):
            square = count * gains**2 * (variance + factor**2 * offset) / marginal**2
            norms = np.sum(count * gains, -1, keepdims=True) / np.sum(square, -1, keepdims=True)
            step = 2 * schedule.alphas[i] * snr**2 * norms
            shrink = 1 - step * gains / marginal
            variance, factor = shrink**2 * variance + 2 * step * gains, shrink * factor
        shrink = 1 - gains * (schedule.drift[i] + schedule.diffusion[i] / marginal)
        variance, factor = shrink**2 * variance, shrink * factor
        if i < last:
            variance = variance + schedule.diffusion[i] * gains
    return variance, factor**2 * offset


def _of_statistics(stats: Any) -> tuple[np.ndarray, np.ndarray]:
    """Half planes of P and r_f; the other half repeats them."""
    return stats.power.astype(np.float64), stats.r_f[:, : stats.power.shape[1]].astype(np.float64)


def _natural_image(size: int = 32, variance: float = 0.06, mean: float = 0.45) -> tuple[np.ndarray, np.ndarray]:
    """Power spectrum and raw statistics of [0, 1] images with a 1/|k|² spectrum."""
    k = np.fft.fftfreq(size) * size
    square = k[:, None] ** 2 + k[None, :] ** 2
    power = 1 / np.maximum(square, 0.5)
    power *= variance * size * size / power.sum()
    r_f = power * size * size
    r_f[0, 0] += (mean * size * size) ** 2
    return power, np.log1p(r_f)
