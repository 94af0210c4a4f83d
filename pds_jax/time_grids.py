"""Times at which a sampler evaluates the score, from T = 1 down to eps; computed in float64, given as float32."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pds_jax.sde_lib import SDE
from pds_jax.types import PdsError

GRIDS = ("uniform", "edm")


def uniform(T: float, eps: float, N: int) -> np.ndarray:  # noqa: N803
    """t_i = T + i (eps − T)/(N − 1): the grid of the predictor–corrector samplers.

    Args:
      T: first time.
      eps: last time, 0 < eps < T.
      N: number of times, ≥ 2.

    Returns:
      (N,) float32, decreasing.

    Raises:
      PdsError: N < 2, or not 0 < eps < T.
    """
    _check(T, eps, N)
    return np.linspace(T, eps, N).astype(np.float32)


def speed_up(num_scales: int, speed_up: float, eps0: float) -> tuple[int, float]:
    """Fewer iterations: N = int(num_scales / speed_up), eps = eps0 · speed_up.

    >>> speed_up(1000, 20, 1e-5)
    (50, 0.0002)

    Source: the released code of Ma et al., IJCV 2025.

    Args:
      num_scales: number of scales in training.
      speed_up: ≥ 1.
      eps0: last time without speed-up, 1e-5 for VE and 1e-3 for VP and subVP.

    Returns:
      N and eps.

    Raises:
      PdsError: speed_up < 1 or not finite, N < 2, or eps ≥ 1.
    """
    if not 1 <= speed_up < math.inf:
        raise PdsError(f"speed_up={speed_up}: use a number >= 1 (1 keeps all {num_scales} iterations)")
    n, eps = int(num_scales / speed_up), eps0 * speed_up
    if n < 2 or eps >= 1:
        raise PdsError(
            f"speed_up={speed_up:g} of {num_scales} scales leaves N={n} iterations down to eps={eps:g}; a sampler "
            f"needs N >= 2 and eps < 1, so use at most {min(num_scales / 2, 0.999 / eps0):g}"
        )
    return n, eps


def edm_rho(sde: SDE, eps: float, N: int, rho: float = 7.0, first: float | None = None) -> np.ndarray:  # noqa: N803
    """Times whose noise levels σ̃ = std/m_t satisfy σ̃_i^{1/ρ} linear in i, from `first`, by default T, to eps.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, equation 5, on
    the noise level of x/m_t.

    Args:
      sde: the SDE.
      eps: last time.
      N: number of times, ≥ 2.
      rho: ρ > 0; the larger, the more of the times have little noise.
      first: first time.

    Returns:
      (N,) float32, decreasing.

    Raises:
      PdsError: N < 2, eps outside (0, 1), or ρ ≤ 0.
    """
    first = sde.T if first is None else first
    _check(first, eps, N)
    if not 0 < rho < math.inf:
        raise PdsError(f"rho={rho}: use a finite number > 0 (7 is EDM's)")
    high, low = (_level(sde, t) ** (1 / rho) for t in (first, eps))
    t = sde.t_of_level(np.linspace(high, low, N) ** rho)
    t[0], t[-1] = first, eps
    return t.astype(np.float32)


def get_grid(
    name: str, sde: SDE, eps: float, N: int, rho: float = 7.0, head_start: float | None = None  # noqa: N803
) -> np.ndarray:
    """The grid called `name`; (N,) float32.

    Args:
      name: of the grid.
      sde: the SDE.
      eps: last time.
      N: number of times, ≥ 2.
      rho: of the grid "edm".
      head_start: noise level std/m_t of the first time, in place of that of T.

    Raises:
      PdsError: unknown name, or a bad argument of the grid.
    """
    if name not in GRIDS:
        raise PdsError(f"unknown grid {name!r}; known: {', '.join(GRIDS)}")
    first = sde.T if head_start is None else start_of(sde, eps, head_start)
    return uniform(first, eps, N) if name == "uniform" else edm_rho(sde, eps, N, rho, first)


def start_of(sde: SDE, eps: float, head_start: float) -> float:
    """The time whose noise level std/m_t is `head_start`.

    Raises:
      PdsError: not between the levels of eps and T.
    """
    low, high = _level(sde, eps), _level(sde, sde.T)
    if not low < float(head_start) <= high:
        raise PdsError(f"head_start={head_start}: use a noise level above {low:.4g} and at most {high:.4g}, or none")
    return float(sde.t_of_level(np.asarray([head_start], np.float64))[0])


def _level(sde: SDE, t: float) -> float:
    time: Any = np.asarray([t], np.float32)
    return float(sde.std(time)[0]) / float(sde.mean_scale(time)[0])


def _check(T: float, eps: float, N: int) -> None:  # noqa: N803
    if int(N) != N or N < 2:
        raise PdsError(f"a time grid needs an integer N >= 2 times, got N={N}")
    if not 0 < eps < T:
        raise PdsError(f"a time grid needs 0 < eps < T={T:g}, got eps={eps}")
