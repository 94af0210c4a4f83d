"""Noise levels σ = std_t/m_t of an SDE's times on the host, in float64; the time of a VP SDE fitted to two levels."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pds_jax.sde_lib import SDE


def levels(sde: SDE, times: Any) -> tuple[np.ndarray, np.ndarray]:
    """m_t and σ = std_t/m_t at times (N,), both float64 and computed so; 1 and 0 at t = 0, the data.

    >>> from pds_jax import VESDE
    >>> levels(VESDE(0.01, 50), [1.0, 0.0])[1].round(4).tolist()
    [50.0, 0.0]
    """
    t = np.asarray(times, np.float64)
    inside = np.where(t > 0, t, 1.0)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        m, std = (np.asarray(of(jnp.asarray(inside)), np.float64) for of in (sde.mean_scale, sde.std))
    return np.where(t > 0, m, 1.0), np.where(t > 0, std / m, 0.0)


class VPTime:
    """Time of the VP SDE with linear β whose levels run from `low` at t = 0.001 to `high` at t = 1.

    t(σ) = (√(β² + 2 β_d log(1 + σ²)) − β)/β_d. Source: Karras et al., EDM, 2022, appendix C.1, as its program fits it.
    """

    END = 1e-3

    def __init__(self, low: float, high: float, end: float = END):
        bottom, top = math.log1p(low**2), math.log1p(high**2)
        self.slope = 2 * (bottom / end - top) / (end - 1)
        self.start = top - self.slope / 2

    def of_level(self, level: np.ndarray) -> np.ndarray:
        """t of σ."""
        grown = 2 * self.slope * np.log1p(np.square(level))
        # The stable form: β may be near 0.
        return grown / self.slope / (np.sqrt(self.start**2 + grown) + self.start)

    def level(self, t: np.ndarray) -> np.ndarray:
        """σ of t."""
        return np.sqrt(np.expm1(self.slope / 2 * np.square(t) + self.start * t))
