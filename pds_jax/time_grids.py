"""Times at which a sampler evaluates the score, from T = 1 down to eps; computed in float64, given as float32.

    uniform     linear in t: the levels of the SDE itself
    edm         linear in σ^{1/ρ}, ρ = 7 (option rho)
    log_sigma   linear in log σ
    quadratic   linear in t^{1/2} of the VP time (option power)
    spectrum    equal changes of Σ_k log(P_k + σ²), P the data's power spectrum
    gits        levels chosen from a teacher's grid by its errors, see ``gits``

σ is std/m_t, the noise level of x/m_t. A custom grid is an array of times, or a function registered with
:func:`register_grid`: fn(sde, eps, N, *, options with defaults) -> (N,) times. It has the keyword ``moments`` if it
needs the data's mean and spectrum, and ``first`` if it can begin at another time than T, for a head start.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from pds_jax.levels import VPTime, levels
from pds_jax.ops import half_plane_weights
from pds_jax.sde_lib import SDE
from pds_jax.steps import number
from pds_jax.types import PdsError, Registry

GRIDS: Registry[Callable[..., np.ndarray]] = Registry("grid")
register_grid = GRIDS.register
_FINE = 4097  # levels between which the grid "spectrum" is interpolated


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


@register_grid("uniform")
def _uniform(sde: SDE, eps: float, N: int, *, first: float | None = None) -> np.ndarray:  # noqa: N803
    return uniform(sde.T if first is None else first, eps, N)


@register_grid("edm")
def edm_rho(sde: SDE, eps: float, N: int, *, rho: float = 7.0, first: float | None = None) -> np.ndarray:  # noqa: N803
    """Times whose noise levels satisfy σ_i^{1/ρ} linear in i; a larger ρ puts more times at low noise.

    Args:
      sde: SDE.
      eps: last time, 0 < eps < the first time.
      N: number of times, ≥ 2.
      rho: ρ, finite and > 0.
      first: first time; None for T.

    Returns:
      (N,) float32 times, decreasing.

    Raises:
      PdsError: N < 2, not 0 < eps < the first time, or ρ not finite and positive.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, equation 5.
    """
    high, low = _ends(sde, eps, N, first)
    if not 0 < number(rho) < math.inf:
        raise PdsError(f"rho={rho}: use a finite number > 0 (7 is EDM's)")
    return at_levels(sde, eps, np.linspace(high ** (1 / rho), low ** (1 / rho), N) ** rho, first)


@register_grid("log_sigma")
def log_sigma(sde: SDE, eps: float, N: int, *, first: float | None = None) -> np.ndarray:  # noqa: N803
    """Times whose noise levels are a geometric sequence, log σ_i linear in i; "logSNR" in DPM-Solver.

    Args:
      sde: SDE.
      eps: last time, 0 < eps < the first time.
      N: number of times, ≥ 2.
      first: first time; None for T.

    Returns:
      (N,) float32 times, decreasing.

    Raises:
      PdsError: N < 2, or not 0 < eps < the first time.

    Source: Lu et al., "DPM-Solver", NeurIPS 2022.
    """
    return at_levels(sde, eps, np.geomspace(*_ends(sde, eps, N, first), N), first)


@register_grid("quadratic")
def quadratic(sde: SDE, eps: float, N: int, *, power: float = 2.0, first: float | None = None) -> np.ndarray:  # noqa: N803
    """t^{1/power} linear in i, in the SDE's own time where its mean shrinks, for VE in that of a VP SDE of its levels.

    Args:
      sde: SDE.
      eps: last time, 0 < eps < the first time.
      N: number of times, ≥ 2.
      power: finite and > 0; 2 is quadratic.
      first: first time; None for T.

    Returns:
      (N,) float32 times, decreasing.

    Raises:
      PdsError: N < 2, not 0 < eps < the first time, or a power that is not finite and positive.

    Source: Song et al., "Denoising Diffusion Implicit Models", 2021, appendix D.3; ``levels.VPTime``.
    """
    high, low = _ends(sde, eps, N, first)
    if not 0 < number(power) < math.inf:
        raise PdsError(f"power={power}: use a finite number > 0 (2 is quadratic, 1 uniform in the VP time)")
    own = float(levels(sde, np.array([sde.T]))[0][0]) != 1
    end = eps if own else VPTime.END
    begin = first if own and first is not None else 1.0
    t = np.linspace(begin ** (1 / power), end ** (1 / power), N) ** power
    return _closed(sde, eps, t, first) if own else at_levels(sde, eps, VPTime(low, high).level(t), first)


@register_grid("spectrum")
def spectrum(sde: SDE, eps: float, N: int, *, moments: Any, first: float | None = None) -> np.ndarray:  # noqa: N803
    """Equal changes of c(σ) = Σ_k log(P_k + σ²), which measures how much of Gaussian data of spectrum P is resolved.

    It equals log σ while noise dominates all frequencies, and is sparse below the level at which they emerge. Derived.

    Args:
      sde: SDE.
      eps: last time, 0 < eps < the first time.
      N: number of times, ≥ 2.
      moments: mean (H, W, C) and power (H, W // 2 + 1, C) of the data in the model's range.
      first: first time; None for T.

    Returns:
      (N,) float32 times, decreasing.

    Raises:
      PdsError: N < 2, or not 0 < eps < the first time.
    """
    mean, power = (np.asarray(value, np.float64) for value in moments)
    weights = half_plane_weights(mean.shape[1])
    sigma = np.geomspace(*_ends(sde, eps, N, first), _FINE)
    change = np.zeros(_FINE)
    for column, weight in enumerate(weights):
        change += weight * np.log(power[:, column].reshape(-1, 1) + sigma**2).sum(axis=0)
    wanted = np.linspace(change[0], change[-1], N)
    return at_levels(sde, eps, np.exp(np.interp(-wanted, -change, np.log(sigma))), first)


def get_grid(name: str, sde: SDE, eps: float, N: int, **options: Any) -> np.ndarray:  # noqa: N803
    """Times of a registered grid.

    Args:
      name: of the grid.
      sde: SDE.
      eps: last time.
      N: number of times.
      **options: of the grid, and ``moments`` and ``first`` where it takes them.

    Returns:
      (N,) float32 times, decreasing.

    Raises:
      PdsError: unknown name, an option that the grid does not have, or a value that the grid rejects.
    """
    grid = GRIDS.find(name)
    known = _options(grid)
    for option in options:
        if option not in known:
            raise PdsError(f"grid {name!r} has no {option} option; it takes {', '.join(known) or 'no options'}")
    return np.asarray(grid(sde, eps, N, **options), np.float32)


def plan(
    grid: Any,
    sde: SDE,
    eps: float | None,
    options: dict[str, Any],
    moments: Callable[[], Any],
    head_start: float | None = None,
) -> tuple[SDE, np.ndarray, dict[str, Any]]:
    """The times of a sampler, from the name of a grid or an array of times.

    Args:
      grid: name, or (N,) decreasing times.
      sde: SDE with N levels; an array of times gives it its own N.
      eps: last time; None is the SDE's own.
      options: of the sampler; those of the grid are taken out.
      moments: () -> the data's mean and spectrum, called where they are needed.
      head_start: noise level std/m_t of the first time, in place of that of T.

    Returns:
      The SDE, the times (N,) float32, and the options left.

    Raises:
      PdsError: as :func:`get_grid`, :func:`checked_times` and :func:`start_of`, or a head start with a grid that has
        a first time of its own.
    """
    known = _options(GRIDS.find(grid)) if isinstance(grid, str) else []
    if head_start is not None and "first" not in known:
        name = repr(grid) if isinstance(grid, str) else "a list of times"
        raise PdsError(f"head_start={head_start}: {name} has a first time of its own; leave one of the two out")
    if not isinstance(grid, str):
        times = checked_times(sde, grid)
        return sde.with_num_scales(len(times)), times, options
    own = {name: value for name, value in options.items() if name in known}
    rest = {name: value for name, value in options.items() if name not in known}
    last = sde.default_eps if eps is None else float(eps)
    if "moments" in known:
        own["moments"] = moments()
    if head_start is not None:
        own["first"] = start_of(sde, last, head_start)
    return sde, get_grid(grid, sde, last, int(sde.N), **own), rest


def start_of(sde: SDE, eps: float, head_start: float) -> float:
    """The time at which the noise level std/m_t is a given one.

    Args:
      sde: SDE.
      eps: last time of the grid.
      head_start: noise level, above that of eps and at most that of T.

    Returns:
      The time, in (eps, T].

    Raises:
      PdsError: a word, or a level out of range.
    """
    if isinstance(head_start, str):
        raise PdsError(
            f"head_start={head_start!r}: use a noise level; 'auto' is for the plan of a checkpoint, which is measured"
        )
    high, low = levels(sde, [sde.T, eps])[1]
    if not low < float(head_start) <= high * (1 + 1e-6):
        raise PdsError(f"head_start={head_start}: use a noise level above {low:.4g} and at most {high:.4g}, or none")
    return min(float(sde.t_of_level(np.asarray([head_start], np.float64))[0]), sde.T)


def checked_times(sde: SDE, times: Any) -> np.ndarray:
    """Times given by the user, checked.

    Args:
      sde: SDE.
      times: (N,) times, N ≥ 2, decreasing, in (0, T].

    Returns:
      (N,) float32.

    Raises:
      PdsError: fewer than two times, times that do not decrease, or one outside (0, T].
    """
    given = np.asarray(times, np.float32)
    inside = given.ndim == 1 and len(given) > 1 and np.isfinite(given).all() and 0 < given[-1] and given[0] <= sde.T
    if not inside or np.any(np.diff(given) >= 0):
        ends = f" from {given[0]:g} to {given[-1]:g}" if given.ndim == 1 and len(given) else ""
        what = f"times of shape {given.shape}{ends}"
        raise PdsError(f"grid: {what}; give a name ({', '.join(GRIDS)}), or N >= 2 decreasing times in (0, {sde.T:g}]")
    return given


def at_levels(sde: SDE, eps: float, sigma: np.ndarray, first: float | None = None) -> np.ndarray:
    """Times of noise levels, with exact ends.

    Args:
      sde: SDE.
      eps: last time, in place of that of the last level.
      sigma: (N,) noise levels std/m_t, decreasing.
      first: first time, in place of that of the first level; None for T.

    Returns:
      (N,) float32 times.
    """
    return _closed(sde, eps, sde.t_of_level(sigma), first)


def option_names() -> set[str]:
    """Names of the options of all grids that a user can give."""
    return {name for grid in GRIDS.values() for name in _options(grid)} - {"first", "moments"}


def _options(grid: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(grid).parameters.values()
    return [p.name for p in parameters if p.kind == inspect.Parameter.KEYWORD_ONLY]


def _closed(sde: SDE, eps: float, t: np.ndarray, first: float | None = None) -> np.ndarray:
    closed = np.array(t, np.float64)
    closed[0], closed[-1] = sde.T if first is None else first, eps
    return closed.astype(np.float32)


def _ends(sde: SDE, eps: float, N: int, first: float | None = None) -> tuple[float, float]:  # noqa: N803
    """The noise levels at the first time and at eps."""
    start = sde.T if first is None else first
    _check(start, eps, N)
    high, low = levels(sde, [start, eps])[1]
    return float(high), float(low)


def _check(T: float, eps: float, N: int) -> None:  # noqa: N803
    if int(N) != N or N < 2:
        raise PdsError(f"N={N}: use a whole number of times, N >= 2")
    if not 0 < eps < T:
        raise PdsError(f"eps={eps}: use 0 < eps < {T:g}, the first time (the default is 1e-5 for VE, 1e-3 for VP)")
