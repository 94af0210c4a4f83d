"""The three SDEs of score-based generative modelling, dx = f(x, t) dt + g(t) dw for t in [0, 1].

Each SDE is a pytree: its parameters, its number of scales N and its tables are leaves, so a compiled sampler takes
another N, σ or β as it takes another image. Tables hold N values, padded by their last one to a multiple of
``TABLE_BLOCK``; index them with :meth:`SDE.index`.

Source: Song et al., "Score-Based Generative Modeling through SDEs", ICLR 2021 (arXiv 2011.13456), appendices B to D.
"""

from __future__ import annotations

import abc
import math
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from pds_jax.ops import batch_mul
from pds_jax.types import Array, Key, PdsError, ScoreFn

TABLE_BLOCK = 1024
_LOG_2PI = math.log(2 * math.pi)
_Sde = TypeVar("_Sde", bound="SDE")


class SDE(abc.ABC):
    """An SDE with N discretisation levels; a pytree whose attributes named in ``leaves`` are traced."""

    leaves: ClassVar[tuple[str, ...]] = ()
    default_eps: ClassVar[float]
    N: Any

    def __init_subclass__(cls) -> None:
        jax.tree_util.register_pytree_with_keys(
            cls,
            lambda sde: (tuple((jax.tree_util.GetAttrKey(n), getattr(sde, n)) for n in cls.leaves), None),
            lambda _, leaves: cls._restore(leaves),
        )

    @classmethod
    def _restore(cls: type[_Sde], leaves: Any) -> _Sde:
        sde = object.__new__(cls)
        sde.__dict__.update(zip(cls.leaves, leaves, strict=True))
        return sde

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"an SDE is immutable; for another N use sde.with_num_scales(N), not sde.{name} = ...")

    @property
    def T(self) -> float:  # noqa: N802
        """End time, 1."""
        return 1.0

    @abc.abstractmethod
    def with_num_scales(self: _Sde, N: int) -> _Sde:  # noqa: N803
        """The same SDE discretised with N levels."""

    @abc.abstractmethod
    def sde(self, x: Array, t: Array) -> tuple[Array, Array]:
        """Drift f(x, t) and diffusion g(t).

        Args:
          x: (B, ...) images.
          t: (B,) times.

        Returns:
          (B, ...) drift and (B,) diffusion.
        """

    @abc.abstractmethod
    def mean_scale(self, t: Array) -> Array:
        """The factor m_t of E[x_t | x_0] = m_t x_0; (B,) from t (B,)."""

    @abc.abstractmethod
    def std(self, t: Array) -> Array:
        """Standard deviation of x_t given x_0; (B,) from t (B,)."""

    @abc.abstractmethod
    def t_of_level(self, level: Any) -> np.ndarray:
        """Time at which std(t) / m_t equals `level`, in float64 on the host."""

    @abc.abstractmethod
    def alphas_at(self, t: Array) -> Array:
        """The factor a_t of the Langevin step size at t (B,); (B,), 1 for VE."""

    def marginal_prob(self, x: Array, t: Array) -> tuple[Array, Array]:
        """Parameters of p(x_t | x_0) = N(m_t x_0, std(t)² I).

        Args:
          x: (B, ...) images x_0.
          t: (B,) times.

        Returns:
          (B, ...) mean and (B,) standard deviation.
        """
        return batch_mul(self.mean_scale(t), x), self.std(t)

    @property
    def prior_std(self) -> Any:
        """Standard deviation of the standard prior: 1 but for VE."""
        return jnp.float32(1)

    def prior_sampling(self, rng: Key, shape: tuple[int, ...]) -> Array:
        """Draw `shape` values from the prior N(0, prior_std² I)."""
        return jax.random.normal(rng, shape, jnp.float32) * self.prior_std

    def prior_logp(self, z: Array) -> Array:
        """Log-density of the prior in nats; (B,) from z (B, ...)."""
        dim = math.prod(z.shape[1:])
        log_norm = -dim * (_LOG_2PI / 2 + jnp.log(self.prior_std))
        return log_norm - jnp.sum(jnp.square(z / self.prior_std).reshape(z.shape[0], -1), axis=1) / 2

    def index(self, t: Array) -> Array:
        """Level k = int(t (N − 1)) of the discretisation, int32 (B,)."""
        return (t * jnp.float32(self.N - 1)).astype(jnp.int32)

    def discretize(self, x: Array, t: Array) -> tuple[Array, Array]:
        """One step x_{i+1} = x_i + f_i(x_i) + G_i z_i; Euler–Maruyama unless the SDE has its own.

        Args:
          x: (B, ...) images.
          t: (B,) times.

        Returns:
          (B, ...) f and (B,) G.
        """
        drift, diffusion = self.sde(x, t)
        return drift / jnp.float32(self.N), diffusion / jnp.sqrt(jnp.float32(self.N))

    def reverse(self, score_fn: ScoreFn, probability_flow: bool = False) -> ReverseSDE:
        """The SDE run backwards in time with the score, or its probability flow (an ODE)."""
        return ReverseSDE(self, score_fn, probability_flow)


class ReverseSDE:
    """Reverse-time SDE dx = [f − g² s] dt + g dw̄, or probability flow dx = [f − ½ g² s] dt.

    Source: Song et al., ICLR 2021, equations 6 and 13.
    """

    def __init__(self, forward: SDE, score_fn: ScoreFn, probability_flow: bool):
        self.forward = forward
        self.score_fn = score_fn
        self.probability_flow = probability_flow

    @property
    def N(self) -> Any:  # noqa: N802
        """Number of levels."""
        return self.forward.N

    @property
    def T(self) -> float:  # noqa: N802
        """End time, 1."""
        return self.forward.T

    def sde(self, x: Array, t: Array) -> tuple[Array, Array]:
        """Drift (B, ...) and diffusion (B,) of the reverse SDE at x (B, ...), t (B,)."""
        return self._reverse(self.forward.sde, x, t)

    def discretize(self, x: Array, t: Array) -> tuple[Array, Array]:
        """f (B, ...) and G (B,) of x_i = x_{i+1} − f + G z at x_{i+1} (B, ...), t (B,)."""
        return self._reverse(self.forward.discretize, x, t)

    def _reverse(self, forward: Any, x: Array, t: Array) -> tuple[Array, Array]:
        f, g = forward(x, t)
        half = 0.5 if self.probability_flow else 1.0
        f = f - batch_mul(half * jnp.square(g), self.score_fn(x, t))
        return f, jnp.zeros_like(g) if self.probability_flow else g


class VESDE(SDE):
    """Variance-exploding SDE (SMLD): f = 0, σ(t) = σ_min (σ_max/σ_min)^t, g = σ √(2 log(σ_max/σ_min)).

    Discretised, x_{i+1} = x_i + √(σ_i² − σ_{i−1}²) z with σ_{−1} = 0 and the N geometric levels ``discrete_sigmas``.

    Args:
      sigma_min: smallest noise level, > 0, in the data's units.
      sigma_max: largest noise level.
      N: number of levels.

    Raises:
      PdsError: levels not 0 < sigma_min < sigma_max < ∞, or N < 1.
    """

    leaves: ClassVar[tuple[str, ...]] = ("sigma_min", "sigma_max", "N", "discrete_sigmas")
    sigma_min: Any
    sigma_max: Any
    discrete_sigmas: Any
    default_eps = 1e-5

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50, N: int = 1000):  # noqa: N803
        low, high = float(sigma_min), float(sigma_max)
        if not 0 < low < high < math.inf:
            raise PdsError(f"VESDE needs 0 < sigma_min < sigma_max, got sigma_min={low:g}, sigma_max={high:g}")
        n = _checked_scales(N)
        log_sigmas = _two_sided_grid(math.log(low), math.log(high), n)
        self.__dict__.update(
            sigma_min=np.float32(low),
            sigma_max=np.float32(high),
            N=np.int32(n),
            discrete_sigmas=_table(np.exp(log_sigmas.astype(np.float64))),
        )

    def with_num_scales(self, N: int) -> VESDE:  # noqa: N803
        """The same SDE with N levels."""
        return VESDE(_python_float(self.sigma_min), _python_float(self.sigma_max), N)

    def sde(self, x: Array, t: Array) -> tuple[Array, Array]:
        """f = 0 and g(t); shapes as in :meth:`SDE.sde`."""
        return jnp.zeros_like(x), self.std(t) * jnp.sqrt(2 * jnp.log(self.sigma_max / self.sigma_min))

    def mean_scale(self, t: Array) -> Array:
        """m_t = 1."""
        return jnp.ones_like(t)

    def std(self, t: Array) -> Array:
        """σ(t)."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def t_of_level(self, level: Any) -> np.ndarray:
        """t = log(σ/σ_min) / log(σ_max/σ_min)."""
        low, high = float(self.sigma_min), float(self.sigma_max)
        return np.log(np.asarray(level, np.float64) / low) / math.log(high / low)

    def alphas_at(self, t: Array) -> Array:
        """a_t = 1."""
        return jnp.ones_like(t)

    @property
    def prior_std(self) -> Any:
        """σ_max."""
        return self.sigma_max

    def levels(self, t: Array) -> tuple[Array, Array]:
        """σ_i at t (B,) and the level below, σ_{i−1}, which is 0 below the first; both (B,)."""
        k, sigmas = self.index(t), jnp.asarray(self.discrete_sigmas)
        return sigmas[k], jnp.where(k == 0, jnp.float32(0), sigmas[jnp.maximum(k - 1, 0)])

    def discretize(self, x: Array, t: Array) -> tuple[Array, Array]:
        """f = 0, G = √(σ_i² − σ_{i−1}²); shapes as in :meth:`SDE.discretize`."""
        sigma, below = self.levels(t)
        # Factored: the difference of two squares cancels in float32 when N is large.
        return jnp.zeros_like(x), jnp.sqrt((sigma - below) * (sigma + below))


class _LinearBeta(SDE):
    """What VP and subVP share: β(t) = β_min + t (β_max − β_min) and m_t = exp(−½ ∫β)."""

    leaves: ClassVar[tuple[str, ...]] = ("beta_0", "beta_1", "N", "discrete_betas", "alphas")
    beta_0: Any
    beta_1: Any
    discrete_betas: Any
    alphas: Any
    default_eps = 1e-3

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20, N: int = 1000):  # noqa: N803
        low, high = float(beta_min), float(beta_max)
        if not 0 < low <= high < math.inf:
            raise PdsError(
                f"{type(self).__name__} needs 0 < beta_min <= beta_max, got beta_min={low:g}, beta_max={high:g}"
            )
        n = _checked_scales(N)
        betas = _two_sided_grid(low / n, high / n, n)
        self.__dict__.update(
            beta_0=np.float32(low),
            beta_1=np.float32(high),
            N=np.int32(n),
            discrete_betas=_table(betas),
            alphas=_table(np.float32(1) - betas),
        )

    def with_num_scales(self: _Sde, N: int) -> _Sde:  # noqa: N803
        """The same SDE with N levels."""
        low, high = (_python_float(getattr(self, name)) for name in ("beta_0", "beta_1"))
        return type(self)(low, high, N)  # type: ignore[call-arg]

    def beta(self, t: Array) -> Array:
        """β(t); (B,) from t (B,)."""
        return self.beta_0 + t * (self.beta_1 - self.beta_0)

    def log_mean_coeff(self, t: Array) -> Array:
        """log m_t = −t² (β_max − β_min)/4 − t β_min/2; (B,) from t (B,)."""
        return -0.25 * jnp.square(t) * (self.beta_1 - self.beta_0) - 0.5 * t * self.beta_0

    def mean_scale(self, t: Array) -> Array:
        """m_t = exp(log m_t)."""
        return jnp.exp(self.log_mean_coeff(t))

    def alphas_at(self, t: Array) -> Array:
        """a_t = 1 − β_k/N at the level k = int(t (N − 1)) of the discretisation.

        score_sde gives subVP no such table, so its Langevin and ALD correctors crash there; here both SDEs have it.
        """
        return jnp.asarray(self.alphas)[self.index(t)]

    def _t_of_log_mean(self, log_mean: np.ndarray) -> np.ndarray:
        slope, low = float(self.beta_1) - float(self.beta_0), float(self.beta_0)
        # The stable root of slope t²/4 + low t/2 + log m = 0; it also holds for slope = 0.
        return -4 * log_mean / (low + np.sqrt(low * low - 4 * slope * log_mean))


class VPSDE(_LinearBeta):
    """Variance-preserving SDE (DDPM): f = −½ β(t) x, g = √β(t), std² = 1 − m_t².

    Discretised, x_{i+1} = √(1 − β_i) x_i + √β_i z with β_i = ``discrete_betas``, which needs N ≥ β_max: below that
    β_i exceeds 1 and f is NaN (the sampler refuses it; Euler–Maruyama does not use these tables). std is computed by
    expm1, which keeps the digits that 1 − exp loses near t = 0.

    Args:
      beta_min: β(0) > 0.
      beta_max: β(1).
      N: number of levels.

    Raises:
      PdsError: not 0 < beta_min ≤ beta_max < ∞, or N < 1.
    """

    leaves: ClassVar[tuple[str, ...]] = (
        *_LinearBeta.leaves,
        "alphas_cumprod",
        "sqrt_alphas_cumprod",
        "sqrt_1m_alphas_cumprod",
    )
    alphas_cumprod: Any
    sqrt_alphas_cumprod: Any
    sqrt_1m_alphas_cumprod: Any

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20, N: int = 1000):  # noqa: N803
        super().__init__(beta_min, beta_max, N)
        n = int(self.N)
        cumprod = np.cumprod(1 - self.__dict__["discrete_betas"][:n].astype(np.float64))
        with np.errstate(invalid="ignore"):
            self.__dict__.update(
                alphas_cumprod=_table(cumprod),
                sqrt_alphas_cumprod=_table(np.sqrt(cumprod)),
                sqrt_1m_alphas_cumprod=_table(np.sqrt(1 - cumprod)),
            )

    def sde(self, x: Array, t: Array) -> tuple[Array, Array]:
        """f = −½ β x and g = √β; shapes as in :meth:`SDE.sde`."""
        beta = self.beta(t)
        return batch_mul(-0.5 * beta, x), jnp.sqrt(beta)

    def std(self, t: Array) -> Array:
        """√(1 − m_t²)."""
        return jnp.sqrt(-jnp.expm1(2 * self.log_mean_coeff(t)))

    def t_of_level(self, level: Any) -> np.ndarray:
        """The t with 1/m_t² = 1 + level²."""
        return self._t_of_log_mean(-0.5 * np.log1p(np.square(np.asarray(level, np.float64))))

    def discretize(self, x: Array, t: Array) -> tuple[Array, Array]:
        """DDPM: f = (√(1 − β_i) − 1) x, G = √β_i; shapes as in :meth:`SDE.discretize`."""
        k = self.index(t)
        alpha, beta = jnp.asarray(self.alphas)[k], jnp.asarray(self.discrete_betas)[k]
        # √α − 1 = −β/(1 + √α), without the cancellation.
        return batch_mul(-beta / (1 + jnp.sqrt(alpha)), x), jnp.sqrt(beta)


class subVPSDE(_LinearBeta):  # noqa: N801
    """Sub-VP SDE: f = −½ β x, g = √(β (1 − exp(−2 ∫β))), std = 1 − m_t².

    Args:
      beta_min: β(0) > 0.
      beta_max: β(1).
      N: number of levels.

    Raises:
      PdsError: not 0 < beta_min ≤ beta_max < ∞, or N < 1.
    """

    def sde(self, x: Array, t: Array) -> tuple[Array, Array]:
        """Drift and diffusion; shapes as in :meth:`SDE.sde`."""
        beta = self.beta(t)
        return batch_mul(-0.5 * beta, x), jnp.sqrt(-beta * jnp.expm1(4 * self.log_mean_coeff(t)))

    def std(self, t: Array) -> Array:
        """1 − m_t²."""
        return -jnp.expm1(2 * self.log_mean_coeff(t))

    def t_of_level(self, level: Any) -> np.ndarray:
        """The t with 1/m_t − m_t = level."""
        return self._t_of_log_mean(-np.arcsinh(np.asarray(level, np.float64) / 2))


SDES: dict[str, type[SDE]] = {"vesde": VESDE, "vpsde": VPSDE, "subvpsde": subVPSDE}


def get_sde(config: Any, N: int | None = None) -> tuple[SDE, float]:  # noqa: N803
    """The SDE of a configuration, and the smallest time that sampling goes to.

    Args:
      config: with training.sde ('vesde', 'vpsde', 'subvpsde') and the model's sigma_min, sigma_max or beta_min,
        beta_max and num_scales.
      N: number of levels in place of config.model.num_scales.

    Returns:
      The SDE and eps: 1e-5 for VE, 1e-3 for VP and subVP.

    Raises:
      PdsError: unknown name, or bad levels.
    """
    name = str(config.training.sde).lower()
    if name not in SDES:
        raise PdsError(f"unknown config.training.sde {config.training.sde!r}; known: {', '.join(SDES)}")
    model, n = config.model, config.model.num_scales if N is None else N
    if name == "vesde":
        sde: SDE = VESDE(model.sigma_min, model.sigma_max, n)
    else:
        sde = (VPSDE if name == "vpsde" else subVPSDE)(model.beta_min, model.beta_max, n)
    return sde, sde.default_eps


def _checked_scales(n: Any) -> int:
    if int(n) != n or n < 1:
        raise PdsError(f"the number of scales N must be an integer >= 1, got {n}")
    return int(n)


def _python_float(value: Any) -> float:
    """The shortest decimal that gives this float32, so that 0.1 stays 0.1."""
    return float(str(np.float32(value)))


def _two_sided_grid(start: float, end: float, n: int) -> np.ndarray:
    """`n` evenly spaced float32 values counted from both ends, each rounded once.

    The levels of the released PyTorch code; their rounding shows where neighbouring levels are subtracted (N = 1000).
    """
    first, last = np.float32(start), np.float32(end)
    step = np.float64((last - first) / np.float32(max(n - 1, 1)))
    i = np.arange(n)
    return np.where(i < max(n // 2, 1), first + step * i, last - step * (n - 1 - i)).astype(np.float32)


def _table(values: np.ndarray) -> np.ndarray:
    """Float32, padded by its last value to a multiple of TABLE_BLOCK."""
    return np.pad(values.astype(np.float32), (0, -len(values) % TABLE_BLOCK), mode="edge")
