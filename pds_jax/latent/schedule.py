"""A scheduler's configuration to noise levels, and these as an SDE in continuous time.

With ᾱ_k = Π_{i ≤ k} (1 − β_i), level k = 0 … n − 1 of training is x_k = √ᾱ_k x_0 + √(1 − ᾱ_k) ε. The SDE has
t = (k + 1)/n there, m_0 = 1, and log m_t linear in between, so β(t) = −n log(1 − β_k) is constant on each interval.
Derived here; at n steps of the default grid it is DDPM's own chain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from pds_jax.convert.tree import ConversionError
from pds_jax.ops import batch_mul
from pds_jax.sde_lib import SDE, TABLE_BLOCK
from pds_jax.types import Array, PdsError

PREDICTIONS = ("epsilon", "v_prediction")
# Signal that a schedule of zero terminal SNR keeps at its last level, so that its noise level stays finite.
_LEAST_ALPHA_BAR = 2.0**-24
_COSINE_OFFSET = 0.008
_DEFAULTS = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02}


def prediction_type(fields: Mapping[str, Any], where: str) -> str:
    """What the network of a pipeline predicts.

    Args:
      fields: ``scheduler_config.json``.
      where: the file, for messages.

    Raises:
      ConversionError: something else than ε or v.
    """
    value = fields.get("prediction_type", "epsilon")
    if value not in PREDICTIONS:
        raise ConversionError(f"{where}: prediction_type={value!r} is not supported; known: {', '.join(PREDICTIONS)}")
    return str(value)


def alpha_bars(fields: Mapping[str, Any], where: str) -> np.ndarray:
    """(n,) float64 ᾱ_k of any of diffusers' schedulers that have β.

    Arguments and errors as of :func:`prediction_type`; a flow-matching scheduler has no β and is refused.
    """
    betas = _betas(fields, where)
    if not ((betas > 0) & (betas < 1)).all() or betas.size < 2:
        raise ConversionError(f"{where}: betas must be at least two numbers between 0 and 1")
    found = np.cumprod(1 - betas)
    if fields.get("rescale_betas_zero_snr"):
        root = np.sqrt(found)
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        found = np.maximum(np.square(root), _LEAST_ALPHA_BAR)
    return found


def _betas(fields: Mapping[str, Any], where: str) -> np.ndarray:
    name = str(fields.get("_class_name", ""))
    if "Flow" in name or fields.get("use_flow_sigmas") or "shift" in fields:
        raise ConversionError(f"{where}: {name} is a flow-matching scheduler, whose networks are not supported")
    if fields.get("trained_betas") is not None:
        return np.asarray(fields["trained_betas"], np.float64)
    n, start, end = (fields.get(key, value) for key, value in _DEFAULTS.items())
    if type(n) is not int or not 2 <= n <= 1 << 20 or not all(isinstance(end, int | float) for end in (start, end)):
        raise ConversionError(f"{where}: num_train_timesteps, beta_start, beta_end are {n!r}, {start!r}, {end!r}")
    kind = fields.get("beta_schedule", "linear")
    if kind == "linear":
        return np.linspace(start, end, n)
    if kind == "scaled_linear":
        return np.square(np.linspace(start**0.5, end**0.5, n))
    if kind == "sigmoid":
        return start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, n)))
    if kind == "squaredcos_cap_v2":
        place = (np.arange(n + 1) / n + _COSINE_OFFSET) / (1 + _COSINE_OFFSET)
        signal = np.square(np.cos(place * np.pi / 2))
        return np.minimum(1 - signal[1:] / signal[:-1], 0.999)
    known = "linear, scaled_linear, squaredcos_cap_v2, sigmoid"
    raise ConversionError(f"{where}: beta_schedule={kind!r} is not supported; known: {known}, or trained_betas")


class TableVPSDE(SDE):
    """Variance-preserving SDE through a table of levels: f = −½ β(t) x, g = √β(t), std² = 1 − m_t².

    Discretised with N levels t_i = (i + 1)/N, x_{i+1} = √(1 − β_i) x_i + √β_i z with 1 − β_i = m²(t_i)/m²(t_{i−1}),
    which is exact for every N.

    Args:
      alpha_bar: (n,) ᾱ_k, decreasing, between 0 and 1.
      N: number of levels; n by default.

    Raises:
      PdsError: a table that does not decrease from below 1 to above 0.
    """

    log_means: Any

    def __init__(self, alpha_bar: Any, N: int | None = None):  # noqa: N803
        table = np.asarray(alpha_bar, np.float64)
        steps = np.diff(np.concatenate([[1.0], table])) if table.ndim == 1 else np.ones(1)
        if table.size < 2 or not (steps < 0).all() or not table[-1] > 0:
            raise PdsError(
                "a table of noise levels must decrease from below 1 to above 0, and have at least two entries"
            )
        self.log_means = np.concatenate([[0.0], 0.5 * np.log(table)]).astype(np.float32)
        self.N = np.int32(N or table.size)
        self.__dict__.update(self.tables(int(self.N)))

    @property
    def default_eps(self) -> float:  # type: ignore[override]
        """Time of the first level, 1/n."""
        return 1 / (len(self.log_means) - 1)

    def tables(self, N: int) -> dict[str, np.ndarray]:  # noqa: N803
        """β_i, padded."""
        ends = np.interp(np.arange(N + 1) / N, np.linspace(0, 1, len(self.log_means)), self.log_means)
        betas = -np.expm1(2 * np.diff(ends)).astype(np.float32)
        return {"_betas": np.pad(betas, (0, -N % TABLE_BLOCK), mode="edge")}

    def log_mean_coeff(self, t: Array) -> Array:
        """log m_t; (B,) from t (B,)."""
        below, part = self._interval(t)
        table = jnp.asarray(self.log_means)
        return table[below] + part * (table[below + 1] - table[below])

    def _interval(self, t: Array) -> tuple[Array, Array]:
        """The entry of the table at or below t, and how far t is towards the next."""
        count = len(self.log_means) - 1
        place = t * jnp.float32(count)
        below = jnp.clip(jnp.floor(place), 0, count - 1)
        return below.astype(jnp.int32), place - below

    def mean_scale(self, t: Array) -> Array:
        """m_t."""
        return jnp.exp(self.log_mean_coeff(t))

    def std(self, t: Array) -> Array:
        """√(1 − m_t²)."""
        return jnp.sqrt(-jnp.expm1(2 * self.log_mean_coeff(t)))

    def sde(self, x: Array, t: Array) -> tuple[Array, Array]:
        """f = −½ β x and g = √β; shapes as in :meth:`SDE.sde`."""
        count, table = len(self.log_means) - 1, jnp.asarray(self.log_means)
        above = jnp.clip(jnp.ceil(t * jnp.float32(count)), 1, count).astype(jnp.int32)
        beta = -2 * count * (table[above] - table[above - 1])
        return batch_mul(-0.5 * beta, x), jnp.sqrt(beta)

    def discretize(self, x: Array, t: Array) -> tuple[Array, Array]:
        """f = √(1 − β_i) x − x and G = √β_i; shapes as in :meth:`SDE.discretize`."""
        beta = self._beta(t)
        return batch_mul(jnp.sqrt(1 - beta) - 1, x), jnp.sqrt(beta)

    def ancestral(self, t: Array) -> tuple[Array, Array, Array]:
        """β_i, 1/√(1 − β_i) and √β_i."""
        beta = self._beta(t)
        return beta, 1 / jnp.sqrt(1 - beta), jnp.sqrt(beta)

    def alphas_at(self, t: Array) -> Array:
        """1 − β_i."""
        return 1 - self._beta(t)

    def _beta(self, t: Array) -> Array:
        return jnp.asarray(self.__dict__["_betas"])[self.index(t)]

    def label(self, t: Array, continuous: bool) -> Array:  # noqa: ARG002
        """The level k = t n − 1, at least 0."""
        return jnp.maximum(t * jnp.float32(len(self.log_means) - 1) - 1, 0)

    @property
    def prior_std(self) -> Any:
        """1."""
        return jnp.float32(1)

    def t_of_level(self, level: Any) -> np.ndarray:
        """t at which log m = −½ log(1 + level²); 1 above the last level of the table."""
        log_mean = -0.5 * np.log1p(np.square(np.asarray(level, np.float64)))
        table = np.asarray(self.log_means, np.float64)
        return np.interp(log_mean, table[::-1], np.linspace(1, 0, table.size))
