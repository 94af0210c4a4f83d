"""Exponential integrators in λ = −log σ: DPM-Solver++(2M, 3M) and UniPC, each of either prediction.

With h the step in λ, q the newest output (D, or the slope d), z = −h for D and h for d, φ_k(z) the integral of
e^{(1−u)z} u^{k−1}/(k−1)! over 0..1, and q + u D₁ + u² D₂ + … the polynomial through the outputs,

    data     x̄' = (σ'/σ) x̄ + h [φ₁ q + …]           noise     x̄' = x̄ − σ' h [φ₁ q + …]

    dpmpp_2m   φ₁ (q + D₁/2)                                          Lu et al., "DPM-Solver++", 2022, equation 17
    dpmpp_3m   φ₁ q + φ₂ D₁ + φ₃ D₂, at order 2 φ₁ (q + D₁/2)         the same, appendix B
    unipc      φ₁ q + (B/h) Σ_k ρ_k (q_k − q)/r_k, and the corrector  Zhao et al., "UniPC", 2023, algorithms 1 to 4

UniPC corrects the state with the output that the next step needs anyway, so a step is one evaluation. The last steps
have lower orders (``lower_final``); for dpmpp_2m that is off where a step to the data follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from pds_jax.levels import levels
from pds_jax.predictors import register_predictor
from pds_jax.sde_lib import SDE
from pds_jax.solvers.checks import check_steps, one_of, true_or_false, whole_number
from pds_jax.solvers.linear import PREDICTIONS, Weights, advance, keeps

FORMS = ("bh1", "bh2")


def phi(z: float, count: int) -> list[float]:
    """φ₁(z) … φ_count(z)."""
    if abs(z) < 0.5:  # the recursion below cancels
        return [sum(z**n / math.factorial(n + k) for n in range(24)) for k in range(1, count + 1)]
    values = [math.expm1(z) / z]
    for k in range(1, count):
        values.append((values[-1] - 1 / math.factorial(k)) / z)
    return values


def rising(steps: int, order: int, lower_final: bool) -> list[int]:
    """The order of each step: at most the number of outputs so far and, with `lower_final`, of the steps left."""
    return [min(order, i + 1, steps - i if lower_final else order) for i in range(steps)]


def dpmpp(sigma: np.ndarray, order: int, prediction: str, lower_final: bool, exact: bool = False) -> Weights:
    """DPM-Solver++ of order 1 to 3 for levels σ (n + 1,) > 0; n rows that keep 3 outputs.

    `exact` gives D₁ and D₂ the weights of the integral, φ₂ and 2 φ₃. Published are φ₁/2 at order 2, which changes no
    order, and φ₃ at order 3, half of what order 3 needs.
    """
    lam, data = -np.log(sigma), prediction == "data"
    weights = Weights.blank(len(sigma) - 1, 3)
    for i, used in enumerate(rising(len(sigma) - 1, order, lower_final)):
        h = lam[i + 1] - lam[i]
        first, second, third = phi(-h if data else h, 3)
        coefficients = np.array([1.0, 0.0, 0.0]) * first
        if used > 1:
            slope = np.array([1.0, -1.0, 0.0]) * h / (lam[i] - lam[i - 1])
        if used == 2:
            coefficients += slope * (second if exact else first / 2)
        if used == 3:
            r0, r1 = (lam[i] - lam[i - 1]) / h, (lam[i - 1] - lam[i - 2]) / h
            change = (slope - np.array([0.0, 1.0, -1.0]) / r1) / (r0 + r1)
            coefficients += (slope + r0 * change) * second + change * third * (2 if exact else 1)
        weights.keep[i] = sigma[i + 1] / sigma[i] if data else 1.0
        weights.predict[i] = h * coefficients * (1.0 if data else -sigma[i + 1])
    return weights


def unipc_weights(sigma: np.ndarray, order: int, form: str, prediction: str, lower_final: bool = True) -> Weights:
    """UniPC of order 1 to 4 for levels σ (n + 1,) > 0; n rows that keep order + 1 outputs.

    A row corrects the state that the step before has made; the last step's is not corrected.
    """
    lam, data, steps = -np.log(sigma), prediction == "data", len(sigma) - 1
    weights = Weights.blank(steps, 5)
    for i, used in enumerate(rising(steps, order, lower_final)):
        h = lam[i + 1] - lam[i]
        z, scale = (-h, 1.0) if data else (h, -sigma[i + 1])
        values = phi(z, used + 1)
        b = z if form == "bh1" else math.expm1(z)
        ratios = np.append((lam[i - 1 :: -1] if i else lam[:0])[: used - 1] - lam[i], h) / h
        right = np.array([math.factorial(k) * z * values[k] / b for k in range(1, used + 1)])
        powers = np.vander(ratios, used, increasing=True).T
        full = _solved(powers, right)
        short = _solved(powers[:-1, :-1], right[:-1])
        # − B for D, − σ' B for d: h = |z|.
        share = -b if data else -sigma[i + 1] * b
        weights.keep[i] = sigma[i + 1] / sigma[i] if data else 1.0
        base = scale * h * values[0]
        weights.predict[i, 0] = base - share * np.sum(short / ratios[:-1])
        weights.predict[i, 1:used] = share * short / ratios[:-1]
        if i + 1 < steps:
            weights.corrects[i + 1] = 1
            weights.correct[i + 1, 0] = share * full[-1]
            weights.correct[i + 1, 1] = base - share * np.sum(full / ratios)
            weights.correct[i + 1, 2 : used + 1] = share * full[:-1] / ratios[:-1]
    return weights


def _solved(powers: np.ndarray, right: np.ndarray) -> np.ndarray:
    """ρ of a predictor or corrector; that of one term is fixed at 1/2, as published."""
    return np.full(1, 0.5) if len(right) == 1 else np.linalg.solve(powers, right)


def _dpmpp(name: str, most: int) -> Callable[..., np.ndarray]:
    def coefficients(sde: SDE, times: np.ndarray, options: dict[str, Any]) -> np.ndarray:
        prediction = one_of(options, "prediction", PREDICTIONS, name)
        order = whole_number(options, "order", 1, most, name) if most > 2 else most
        check_steps(len(times) - (not options["denoise"]), order, name)
        lower = options["lower_final"]
        lower = not options["denoise"] if lower is None else true_or_false(options, "lower_final", name)
        exact = "exact" in options and true_or_false(options, "exact", name)
        sigma = levels(sde, times)[1]
        weights = dpmpp(sigma, order, prediction, lower, exact)
        return weights.to_data(sigma[-1], prediction).stacked()

    return coefficients


def _unipc(sde: SDE, times: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    order = whole_number(options, "order", 1, 4, "unipc")
    one_of(options, "prediction", PREDICTIONS, "unipc")
    one_of(options, "form", FORMS, "unipc")
    check_steps(len(times) - (not options["denoise"]), order, "unipc")
    sigma, prediction = levels(sde, times)[1], options["prediction"]
    weights = unipc_weights(sigma, order, options["form"], prediction, true_or_false(options, "lower_final", "unipc"))
    return weights.to_data(sigma[-1], prediction).stacked()


dpmpp_2m = register_predictor(
    "dpmpp_2m", draws=0, coefficients=_dpmpp("dpmpp_2m", 2), init_memory=keeps(3), host_options={"lower_final": None}
)(advance)
dpmpp_3m = register_predictor(
    "dpmpp_3m",
    draws=0,
    coefficients=_dpmpp("dpmpp_3m", 3),
    init_memory=keeps(3),
    host_options={"order": 3, "lower_final": True, "exact": False},
)(advance)
unipc = register_predictor(
    "unipc",
    draws=0,
    coefficients=_unipc,
    init_memory=keeps(5, corrects=True),
    host_options={"order": 3, "form": "bh2", "lower_final": True},
)(advance)
