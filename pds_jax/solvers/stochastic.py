"""Multistep methods of the reverse SDE: ER-SDE and SA-Solver, both of the denoised image D.

    er_sde   x̄' = r x̄ + (1 − r) D + [σ' − σ + f' S₀] D₁ + [(σ' − σ)²/2 + f' S₁] D₂ + √(σ'² − r² σ²) z,
             r = f'/f,  S₀ = ∫ du/f(u),  S₁ = ∫ (u − σ)/f(u) du over σ'..σ,  f the noise scale function of σ;
             D₁, D₂ divided differences of D in σ                              Cui et al., "ER-SDE-Solver", 2023
    sa       x̄' = (σ'/σ) e^{−τ²h} x̄ + Σ_j b_j D_j + σ' √(1 − e^{−2τ²h}) z,  h = log(σ/σ'),
             b_j = (1 + τ²) σ' ∫ e^{−τ²(λ'−λ)} e^{λ} ℓ_j(λ) dλ                 Xue et al., "SA-Solver", 2023

The noise is white, as in the papers. f(u) = u is the probability flow, f = u² the reverse SDE; so are τ = 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from pds_jax import table as tables
from pds_jax.levels import levels
from pds_jax.predictors import PREDICTORS, register_predictor
from pds_jax.sde_lib import SDE
from pds_jax.solvers.checks import check_steps, true_or_false, whole_number
from pds_jax.solvers.linear import Weights, keeps, lagrange, on_data, quadrature
from pds_jax.steps import Step, number, numbers
from pds_jax.table import Table
from pds_jax.types import PdsError

Scale = Callable[[np.ndarray], np.ndarray]
LEAST_VARIANCE = 1e-6
# The noise scale functions of the paper's program, in its order; 3 with its eta = 0.
SCALES: dict[int, Scale] = {
    1: lambda u: u,
    2: np.square,
    3: lambda u: u * (np.exp(-1 / u) + 10),
    4: lambda u: u**1.5,
    5: lambda u: u**2.5,
    6: lambda u: u**0.9 * np.log10(1 + 100 * u**1.5),
    7: lambda u: u * (np.exp(u**0.3) + 10),
}


def integrals(f: Scale, start: float, end: float) -> tuple[float, float]:
    """S₀ and S₁ from σ = `start` down to σ' = `end`, to 1e-12: the paper's program sums 100 values."""
    points, measure = quadrature(math.log(end), math.log(start))
    u = np.exp(points)
    inverse = measure * u / f(u)
    return float(inverse.sum()), float(np.dot(inverse, u - start))


def er_sde_weights(
    sigma: np.ndarray,
    order: int,
    f: Scale,
    sums: Callable[..., tuple[float, float]] = integrals,
    least: float = LEAST_VARIANCE,
) -> Weights:
    """ER-SDE of order 1 to 3 for levels σ (n + 1,); n rows. A step to σ = 0 is x̄' = D.

    Less noise than of the variance `least` is left out, as in the authors' program; of the probability flow, f(u) = u,
    what is left is rounding.
    """
    weights = Weights.blank(len(sigma) - 1, 3)
    for i, (start, end) in enumerate(zip(sigma[:-1], sigma[1:], strict=True)):
        if end == 0:
            weights.keep[i], weights.predict[i, 0] = 0.0, 1.0
            continue
        f_end = float(f(end))
        ratio = f_end / float(f(start))
        weights.keep[i], used = ratio, min(order, i + 1)
        coefficients = np.array([1 - ratio, 0.0, 0.0])
        variance = end**2 - (ratio * start) ** 2
        weights.noise[i] = math.sqrt(variance) if variance > max(least, 1e-12 * end**2) else 0.0
        if used > 1:
            s0, s1 = sums(f, start, end)
            first = np.array([1.0, -1.0, 0.0]) / (start - sigma[i - 1])
            coefficients += (end - start + f_end * s0) * first
        if used > 2:
            before = np.array([0.0, 1.0, -1.0]) / (sigma[i - 1] - sigma[i - 2])
            second = 2 * (first - before) / (start - sigma[i - 2])
            coefficients += ((end - start) ** 2 / 2 + f_end * s1) * second
        weights.predict[i] = coefficients
    return weights


def _er_sde(sde: SDE, times: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    order = whole_number(options, "order", 1, 3, "er_sde")
    scale = options["scale"]
    f = scale if callable(scale) else SCALES[whole_number(options, "scale", 1, 7, "er_sde")]
    check_steps(len(times) - (not options["denoise"]), order, "er_sde")
    least = number(options["least_variance"])
    if not 0 <= least < math.inf:
        raise PdsError(f"er_sde: least_variance={options['least_variance']}; use a finite number >= 0")
    return er_sde_weights(np.append(levels(sde, times)[1], 0.0), order, f, least=least).stacked()


def stochastic_adams(start: float, end: float, tau: float, at: np.ndarray, modified: bool = False) -> np.ndarray:
    """b_j of SA-Solver from σ = `start` to σ' = `end` with the nodes λ = −log σ of the levels `at` (J,).

    `modified`: with two nodes, the first moment (h²/2 in place of the integral) of the authors' few-step mode.
    """
    high, low, k = -math.log(end), -math.log(start), 1 + tau**2
    points, measure = quadrature(low, high)
    kernel = measure * k * np.exp(k * (points - high))
    nodes = -np.log(np.asarray(at))
    weights = lagrange(nodes, points) @ kernel
    if modified and len(nodes) == 2:
        h = high - low
        exact = (h * k + math.expm1(-k * h)) / k**2
        # The distance to the old node for the predictor, the step itself for the corrector.
        moved = k * (h**2 / 2 - exact) if nodes[0] == low else k * (h / 2 - exact / h) * h
        weights += moved / (nodes[0] - nodes[1]) * np.array([1.0, -1.0])
    return weights


def sa_weights(
    sigma: np.ndarray, order: int, corrector_order: int, tau: np.ndarray, more_steps: bool = False
) -> Weights:
    """SA-Solver for levels σ (n + 1,) > 0; n rows, with `more_steps` n + 1, the last of which corrects only.

    Args:
      sigma: decreasing.
      order: of the predictor.
      corrector_order: outputs that the corrector uses, the new one included; 0 for none.
      tau: (n,) of each step; the last is taken to be 0 without `more_steps`.
      more_steps: correct the last step too, and leave the weights of two nodes as they are.
    """
    steps = len(sigma) - 1
    weights = Weights.blank(steps + more_steps, 5)
    for i in range(steps):
        start, end = sigma[i], sigma[i + 1]
        now = 0.0 if i + 1 == steps and not more_steps else float(tau[i])
        h = math.log(start / end)
        weights.keep[i] = end / start * math.exp(-(now**2) * h)
        weights.noise[i] = end * math.sqrt(-math.expm1(-2 * now**2 * h))
        used = min(order, i + 1, steps - i)
        nodes = sigma[i - used + 1 : i + 1][::-1]
        weights.predict[i, :used] = stochastic_adams(start, end, now, nodes, not more_steps)
        used = min(corrector_order, i + 2, steps - i + 1)
        if used and (more_steps or i + 1 < steps):
            weights.corrects[i + 1] = 1
            nodes = sigma[i - used + 2 : i + 2][::-1]
            weights.correct[i + 1, :used] = stochastic_adams(start, end, now, nodes, not more_steps)
    return weights


def tau_of(tau: Any, times: np.ndarray) -> np.ndarray:
    """(n,) τ of the steps that arrive at the n times: a number, or (τ, low, high), which is 0 for t outside low..high.

    Raises:
      PdsError: negative or not finite, or not of this form.
    """
    window = isinstance(tau, tuple | list) or np.ndim(tau) > 0
    value, low, high = numbers(tau, 3) if window else (number(tau), -math.inf, math.inf)
    if not (0 <= value < math.inf and low <= high):
        raise PdsError(f"sa: tau={tau}; use a number >= 0, or (tau, low, high) for low <= t <= high alone")
    return np.where((times >= low) & (times <= high), value, 0.0)


def _sa(sde: SDE, times: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    order, corrector = whole_number(options, "order", 1, 5, "sa"), whole_number(options, "corrector_order", 0, 5, "sa")
    check_steps(len(times) - 1, max(order, corrector - 1), "sa")
    sigma, more = levels(sde, times)[1], true_or_false(options, "more_steps", "sa")
    weights = sa_weights(sigma, order, corrector, tau_of(options["tau"], times[1:]), more)
    return weights.to_data(sigma[-1], "data").stacked()


def _sa_table(sde: SDE, times: np.ndarray, step: Step, options: dict[str, Any]) -> Table:
    """One row a time; with `more_steps` the last is visited once more."""
    assert step.coefficients is not None
    coefficients = step.coefficients(sde, times, options)
    visited = np.append(times, times[-1:]) if true_or_false(options, "more_steps", "sa") else times
    table = tables.pc(visited, step, PREDICTORS["none"], 0, bool(options["denoise"]), coefficients)
    table.rows.draws[len(times) - 1 :] = 0
    return table


er_sde = register_predictor(
    "er_sde",
    coefficients=_er_sde,
    init_memory=keeps(3),
    host_options={"order": 3, "scale": 7, "least_variance": LEAST_VARIANCE},
)(on_data)
sa = register_predictor(
    "sa",
    coefficients=_sa,
    build=_sa_table,
    extra_rows=lambda options: int(true_or_false(options, "more_steps", "sa")),
    init_memory=keeps(5, corrects=True),
    host_options={"order": 3, "corrector_order": 4, "tau": 1.0, "more_steps": False},
)(on_data)
