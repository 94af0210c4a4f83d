"""Heun's method with added noise: EDM's stochastic sampler, and Restart.

    edm      at each level σ: σ̂ = (1 + γ) σ,  x̂ = x̄ + √(σ̂² − σ²) S z,  then a step of order 2 from σ̂ to σ'
             γ = min(churn/N, √2 − 1) where churn_min ≤ σ ≤ churn_max, else 0; less where the SDE has no level σ̂
    restart  the same; each time that it arrives at σ_min of an interval (n, K, σ_min, σ_max), K times
             x̄ ← x̄ + √(σ_max² − σ_min²) S z, and n − 1 steps down again, on EDM's grid of n levels between. σ_min is
             rounded to the nearest level of the grid; intervals at the same level are repeated one after the other,
             in the order given (the authors' program keeps the last of them alone)

A step of order 2 is two rows, at σ̂ and at σ̂ + a (σ' − σ̂); a = 1 is Heun's, ½ the midpoint method. The step to the data
is Euler's and one row. The noise is white: what is added must be what the network is trained on.

Draws, in the order of the authors' programs: one a step, also where γ = 0, and one before the first step of a repeat.

Sources: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, algorithms 1 to 3;
Xu et al., "Restart Sampling for Improving Generative Processes", 2023, algorithm 2.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pds_jax import table as tables
from pds_jax.levels import levels
from pds_jax.predictors import register_predictor
from pds_jax.sde_lib import SDE
from pds_jax.solvers.checks import whole_number
from pds_jax.solvers.linear import Weights, keeps, on_noise
from pds_jax.steps import Step, number, numbers
from pds_jax.table import Table
from pds_jax.types import PdsError

_MOST = math.sqrt(2) - 1  # γ at most, EDM's
_CHURN = {"churn": 0.0, "churn_min": 0.0, "churn_max": math.inf, "churn_noise": 1.0, "second_at": 1.0, "order": 2}
_RHO = 7.0
_NEAR = 1e-4  # relative; times found by bisection are as exact as float32
Interval = tuple[int, int, float, float]


def gammas(sigma: np.ndarray, most: float, options: dict[str, Any]) -> np.ndarray:
    """γ at levels σ (N,): `most` inside churn_min..churn_max."""
    inside = (sigma >= float(options["churn_min"])) & (sigma <= float(options["churn_max"]))
    return np.where(inside, most, 0.0)


class _Rows:
    """The rows of steps from level to level, each an iteration."""

    def __init__(self, sde: SDE, options: dict[str, Any]):
        self.sde, self.options, self.rows = sde, options, list[dict[str, Any]]()
        self.step = 0

    def add(self, sigma: float, gamma: float, below: float, jump: float = 0.0) -> None:
        """A step from σ to `below`, 0 for the data, after which the noise is raised to the level `jump`, 0 for not."""
        at, extra = float(self.options["second_at"]), float(self.options["churn_noise"])
        high = self._reached(sigma, gamma)
        stages = [high] if below == 0 or self.options["order"] == 1 else [high, high + at * (below - high)]
        ends = [*stages[1:], jump or below]
        t, t_next = (self._times(values) for values in (stages, ends))
        weights = Weights.blank(len(stages), 2)
        weights.predict[0, 0] = (stages[1] if len(stages) > 1 else below) - high
        if len(stages) > 1:
            # d of the second stage is the newest.
            weights.corrects[1] = 1
            weights.correct[1] = (below - high) * np.array([1 / (2 * at), 1 - 1 / (2 * at)])
        weights.noise[-1] = extra * math.sqrt(max(jump**2 - below**2, 0.0)) if jump else 0.0
        self.step += 1
        blank = {
            "iteration": self.step,
            "condition_offset": 1,
            "draws": 2 if jump else 1,
            "draw_before": 0,
            "draw": 1 if jump else 0,
        }
        coefficients = weights.stacked()
        own = [{**blank, "t": t[i], "t_next": t_next[i], "coefficients": coefficients[i]} for i in range(len(stages))]
        if high > sigma:
            (m, m_high), _ = levels(self.sde, np.append(self._times([sigma]), t[0]))
            own[0]["scale_before"] = m_high / m
            own[0]["noise_before"] = m_high * extra * math.sqrt(high**2 - sigma**2)
        own[0]["pin_before"] = 0
        own[-1]["pin_after"] = blank["draws"] + 1
        self.rows += own

    def _reached(self, sigma: float, gamma: float) -> float:
        """σ̂, at most the level of T; of VE, as EDM's program, at most the highest level that the SDE has a time for."""
        high = (1 + gamma) * sigma
        shrinks = float(levels(self.sde, [self.sde.T])[0][0]) != 1
        t = np.minimum(self.sde.t_of_level(np.asarray([high])), self.sde.T if shrinks else math.inf)
        found = float(levels(self.sde, t)[1][0])
        return high if found > high * (1 - _NEAR) else max(found, sigma)

    def _times(self, sigma: list[float]) -> np.ndarray:
        """Times of levels; 0 for the data."""
        values = np.asarray(sigma)
        found = self.sde.t_of_level(np.where(values > 0, values, 1.0))
        return np.where(values > 0, found, 0.0).astype(np.float32)


def _checked(options: dict[str, Any], method: str) -> None:
    """Refuse values that are out of range.

    Raises:
      PdsError: names one.
    """
    whole_number(options, "order", 1, 2, method)
    low, high = options["churn_min"], options["churn_max"]
    if not 0 <= number(low) <= number(high):
        raise PdsError(f"{method}: needs numbers 0 <= churn_min <= churn_max, got {low} and {high}")
    for name in ("churn", "churn_noise", *(["restart_gamma"] if "restart_gamma" in options else [])):
        if not 0 <= number(options[name]) < math.inf:
            raise PdsError(f"{method}: {name}={options[name]}; use a finite number >= 0")
    if not 0 < number(options["second_at"]) <= 1:
        raise PdsError(f"{method}: second_at={options['second_at']}; use a number above 0 and at most 1 (Heun's)")


def edm_rows(sde: SDE, times: np.ndarray, step: Step, options: dict[str, Any]) -> Table:
    """The table of both: N steps from the N times, or N − 1 without ``denoise``."""
    _checked(options, step.name)
    sigma = levels(sde, times)[1]
    ends = np.append(sigma[1:], [0.0] * bool(options["denoise"]))
    rows, most = _Rows(sde, options), min(float(options["churn"]) / len(ends), _MOST)
    gamma, repeats = gammas(sigma, most, options), _placed(_intervals(options), np.append(sigma[0], ends))
    for i, below in enumerate(ends):
        here = repeats.get(i + 1, [])
        tops = [top for _, top in here] + [0.0]
        rows.add(sigma[i], gamma[i], below, tops[0])
        for (count, top), next_top in zip(here, tops[1:], strict=True):
            inner = np.linspace(top ** (1 / _RHO), below ** (1 / _RHO), count) ** _RHO
            inner[0], inner[-1] = top, below
            inside = gammas(inner, float(options["restart_gamma"]), options)
            for j in range(count - 1):
                rows.add(inner[j], inside[j], inner[j + 1], next_top if j + 2 == count else 0.0)
    return tables.from_rows(rows.rows, (step,), 2 if repeats else 1)


def _intervals(options: dict[str, Any]) -> list[Interval]:
    """The option ``restarts``, none for a predictor without.

    Raises:
      PdsError: an interval that is none.
    """
    given = options.get("restarts", ())
    form = "use ((levels >= 2, repeats >= 1, sigma_min, sigma_max), ...) with 0 <= sigma_min < sigma_max"
    if not isinstance(given, tuple | list | np.ndarray):
        raise PdsError(f"restart: restarts={given}; {form}")
    found: list[Interval] = []
    for interval in given:
        count, repeats, low, high = numbers(interval, 4)
        whole_numbers = 2 <= count < math.inf and 1 <= repeats < math.inf and count % 1 == repeats % 1 == 0
        if not (whole_numbers and 0 <= low < high < math.inf):
            raise PdsError(f"restart: interval {interval} of restarts={given}; {form}")
        found.append((int(count), int(repeats), low, high))
    return found


def _placed(intervals: list[Interval], sigma: np.ndarray) -> dict[int, list[tuple[int, float]]]:
    """Index of the level nearest to σ_min -> (n, σ_max) of each repeat there.

    Raises:
      PdsError: an interval that begins above the first level, or has no level of the grid below its σ_max.
    """
    found: dict[int, list[tuple[int, float]]] = {}
    for interval in intervals:
        count, repeats, low, high = interval
        index = int(np.argmin(np.abs(sigma - low)))
        if high > sigma[0] * (1 + _NEAR):
            raise PdsError(
                f"restart: sigma_max of interval {interval} is above the first level, {sigma[0]:.6g}; use at most that"
            )
        if index == 0 or sigma[index] >= high:
            raise PdsError(
                f"restart: the grid has no level near sigma_min of interval {interval} that is below its "
                f"sigma_max; the nearest is {sigma[index]:.4g}"
            )
        found.setdefault(index, []).extend([(count, high)] * repeats)
    return found


def _extra(options: dict[str, Any]) -> int:
    """Evaluations of the repeats."""
    stages = 1 if _single(options) else 2
    return sum(repeats * stages * (count - 1) for count, repeats, *_ in _intervals(options))


def _single(options: dict[str, Any]) -> bool:
    """Whether all steps are Euler's, of one row."""
    return whole_number(options, "order", 1, 2, "edm") == 1


edm = register_predictor(
    "edm",
    draws=0,
    second=on_noise,
    is_single_stage=_single,
    build=edm_rows,
    init_memory=keeps(2, corrects=True),
    host_options=_CHURN,
)(on_noise)
restart = register_predictor(
    "restart",
    second=on_noise,
    is_single_stage=_single,
    build=edm_rows,
    extra_rows=_extra,
    init_memory=keeps(2, corrects=True),
    host_options={**_CHURN, "restart_gamma": 0.0, "restarts": ((3, 2, 0.06, 0.3),)},
)(on_noise)
