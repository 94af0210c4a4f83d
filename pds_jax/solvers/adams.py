"""Adams–Bashforth methods on the probability flow dx̄/dσ = (x̄ − D)/σ: iPNDM, its form for variable steps, DEIS-tAB.

    x̄' = x̄ + Σ_j w_j d_j,   d = (x̄ − D)/σ, the newest first

    ipndm     w_j = (σ' − σ) b_j, b the weights for constant steps             Zhang & Chen, "DEIS", 2023, section 3
    ipndm_v   w_j = ∫ ℓ_j(σ) dσ over σ..σ', ℓ_j the Lagrange basis in σ        the same, rhoAB
    deis      w_j = ∫ ℓ_j(τ(σ)) dσ, the basis in the time τ of a VP SDE        the same, tAB

The first steps have as high an order as there are outputs, up to the method's. The step to the data is of order 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pds_jax import table as tables
from pds_jax.levels import VPTime, levels
from pds_jax.predictors import PREDICTORS, register_predictor
from pds_jax.sde_lib import SDE
from pds_jax.solvers.checks import check_steps, true_or_false, whole_number
from pds_jax.solvers.linear import COLUMNS, Weights, keeps, lagrange, on_noise, quadrature
from pds_jax.steps import Step, numbers
from pds_jax.table import Table
from pds_jax.types import PdsError

_CONSTANT = {1: [1.0], 2: [3 / 2, -1 / 2], 3: [23 / 12, -4 / 3, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -3 / 8]}
FITTED = (0.002, 80.0)  # the levels that the time of DEIS runs over where the SDE's mean does not shrink: EDM's


def adams_bashforth(sigma: np.ndarray, order: int, time: Callable[[np.ndarray], np.ndarray] | None = None) -> Weights:
    """Adams–Bashforth weights for n steps between the levels σ (n + 1,).

    Args:
      sigma: decreasing; 0 at the end stands for the data.
      order: 1 to 4.
      time: σ -> the variable of the polynomials; None for the weights of constant steps.

    Returns:
      n rows that keep 4 outputs.
    """
    weights = Weights.blank(len(sigma) - 1, 4)
    for i, (start, end) in enumerate(zip(sigma[:-1], sigma[1:], strict=True)):
        used = 1 if end == 0 else min(order, i + 1)
        weights.predict[i, :used] = _one_step(sigma[i - used + 1 : i + 1][::-1], start, end, time)
    return weights


def _one_step(nodes: np.ndarray, start: float, end: float, time: Any) -> np.ndarray:
    if len(nodes) == 1 or time is None:
        return (end - start) * np.asarray(_CONSTANT[len(nodes)])
    # In log σ: the integrand varies over decades of σ.
    points, measure = quadrature(np.log(start), np.log(end))
    return lagrange(time(nodes), time(np.exp(points))) @ (measure * np.exp(points))


def _coefficients(name: str, time: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """Of a variant: `time` gives (sde, options) -> σ -> variable."""

    def coefficients(sde: SDE, times: np.ndarray, options: dict[str, Any]) -> np.ndarray:
        order = whole_number(options, "order", 1, 4, name)
        check_steps(len(times) - (not options["denoise"]) - true_or_false(options, "afs", name), order, name)
        sigma = np.append(levels(sde, times)[1], 0.0)
        return adams_bashforth(sigma, order, time(sde, options)).stacked()

    return coefficients


def build(sde: SDE, times: np.ndarray, step: Step, options: dict[str, Any]) -> Table:
    """One row a time; with ``afs`` none for the first, whose slope is taken to be x̄/√(1 + σ²).

    Source of afs: Dockhorn et al., "GENIE", 2022.
    """
    assert step.coefficients is not None
    coefficients, to_data = step.coefficients(sde, times, options), bool(options["denoise"])
    none = PREDICTORS["none"]
    if not true_or_false(options, "afs", step.name):
        return tables.pc(times, step, none, 0, to_data, coefficients)
    (m, below_m), (level, below) = (values[:2] for values in levels(sde, times))
    slope = 1 / np.sqrt(1 + level**2)
    grown = 1 + (below - level) * slope
    coefficients[1, COLUMNS.index("seed")] = slope / grown
    table = tables.pc(times[1:], step, none, 0, to_data, coefficients[1:])
    table.rows.scale_before[0] = below_m / m * grown
    return table


def _deis_time(sde: SDE, options: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """The SDE's own time where its mean shrinks; else that of a VP SDE fitted to ``time_range``."""
    span = options["time_range"]
    if span is None and float(levels(sde, np.array([sde.T]))[0][0]) != 1:
        return sde.t_of_level
    low, high = FITTED if span is None else numbers(span, 2)
    if not 0 < low < high < np.inf:
        raise PdsError(f"deis: time_range={span}; use two levels, 0 < low < high")
    return VPTime(low, high).of_level


def _register(name: str, time: Callable[..., Any], **more_options: Any) -> Step:
    register = register_predictor(
        name,
        draws=0,
        coefficients=_coefficients(name, time),
        build=build,
        extra_rows=lambda options: -int(true_or_false(options, "afs", name)),
        init_memory=keeps(4),
        host_options={"order": 3, "afs": False, **more_options},
    )
    return register(on_noise)


ipndm = _register("ipndm", lambda sde, options: None)
# diff-sampler's ipndm_v places parentheses differently from order 3 on, see docs/how_to_choose.md.
ipndm_v = _register("ipndm_v", lambda sde, options: lambda sigma: sigma)
deis = _register("deis", _deis_time, time_range=None)
