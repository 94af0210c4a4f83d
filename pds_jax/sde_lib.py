"""The three SDEs of score-based generative modelling, dx = f(x, t) dt + g(t) dw for t in [0, 1].

Each SDE is a pytree: its parameters, its number of scales N and its tables are leaves, so a compiled sampler accepts
another N, σ or β without recompiling. Inside, tables are padded by their last value to a multiple of
``TABLE_BLOCK``, so that another N has the same shapes; index them with :meth:`SDE.index`.

Source: Song et al., "Score-Based Generative Modeling through SDEs", ICLR 2021 (arXiv 2011.13456), appendices B to D.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import inspect
import math
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from pds_jax.ops import batch_mul
from pds_jax.types import Array, Key, PdsError, Registry, ScoreFn

TABLE_BLOCK = 1024
_USE_ALPHA = ("langevin", "ald")  # the correctors whose step size has 1 − β_i in it
_LOG_2PI = math.log(2 * math.pi)
_REGISTERED: set[type] = set()
_LEAVES = "_leaves"  # names of the leaves, kept by an SDE that JAX put together
_Sde = TypeVar("_Sde", bound="SDE")


class SDE(abc.ABC):
    """An SDE with N discretisation levels; a pytree.

    A subclass defines :meth:`sde`, :meth:`mean_scale` and :meth:`std`, and can override the rest. Its attributes are
    set once, in ``__init__``: numbers and arrays are traced, so other values do not recompile; anything else is static.
    :meth:`tables` returns tables with one value per level. A ``flax.struct.dataclass`` can be a subclass too.
    """

    default_eps: ClassVar[float] = 1e-3
    N: Any = 1000

    def __new__(cls: type[_Sde], *_: Any, **__: Any) -> _Sde:
        """Register the class as a pytree with its first instance, unless a decorator has done so."""
        if cls not in _REGISTERED:
            _REGISTERED.add(cls)
            with contextlib.suppress(ValueError):
                unflatten: Any = functools.partial(_unflatten, cls)
                jax.tree_util.register_pytree_with_keys(cls, _flatten, unflatten)
        return super().__new__(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__:
            raise AttributeError(f"an SDE is immutable; for another N use sde.with_num_scales(N), not sde.{name} = ...")
        self.__dict__[name] = value

    @classmethod
    def from_config(cls: type[_Sde], model: Any, N: int) -> _Sde:  # noqa: N803
        """The SDE that ``config.model`` describes: each argument of ``__init__`` is the field of its name.

        Raises:
          PdsError: a field is missing.
        """
        arguments: dict[str, Any] = {}
        for name, parameter in inspect.signature(cls).parameters.items():
            if name == "N":
                arguments[name] = N
            elif hasattr(model, name):
                arguments[name] = getattr(model, name)
            elif parameter.default is inspect.Parameter.empty:
                raise PdsError(f"config.model.{name} is missing: {cls.__name__} needs it")
        made = cls(**arguments)
        return made if "N" in arguments else made.with_num_scales(N)

    def tables(self, N: int) -> dict[str, np.ndarray]:  # noqa: ARG002, N803
        """Attributes that hold one value a level, of N levels; none by default."""
        return {}

    def with_num_scales(self: _Sde, N: int) -> _Sde:  # noqa: N803
        """The same SDE discretised with N levels."""
        n = _checked_scales(N)
        made = object.__new__(type(self))
        made.__dict__.update({**self.__dict__, "N": np.int32(n), **self.tables(n)})
        return made

    @property
    def T(self) -> float:  # noqa: N802
        """End time, 1."""
        return 1.0

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

    def t_of_level(self, level: Any) -> np.ndarray:
        """Time at which std(t) / m_t equals `level`, in float64 on the host; by bisection unless replaced.

        Bisection gives T for a level above that of T.
        """
        wanted = np.asarray(level, np.float64)
        low, high = np.zeros_like(wanted), np.full_like(wanted, self.T)
        for _ in range(60):
            middle = (low + high) / 2
            time = np.atleast_1d(middle).astype(np.float32)
            found = np.asarray(self.std(time) / self.mean_scale(time), np.float64).reshape(wanted.shape)  # type: ignore[arg-type]
            low, high = np.where(found < wanted, middle, low), np.where(found < wanted, high, middle)
        return (low + high) / 2

    def alphas_at(self, t: Array) -> Array:
        """The factor a_t of the Langevin step size at t (B,); (B,), 1 unless replaced."""
        return jnp.ones_like(t)

    def label(self, t: Array, continuous: bool) -> Array:
        """Time label of a network of this SDE at t (B,): 999 t, or the level t (N − 1)."""
        return 999 * t if continuous else t * jnp.float32(self.N - 1)

    def net_std(self, t: Array, continuous: bool) -> Array | None:  # noqa: ARG002
        """(B,) deviation σ for which a network's output is −σ s(x, t); None if the output is the score."""
        return self.std(t)

    def ancestral(self, t: Array) -> tuple[Array, Array, Array]:
        """(B,) each: c, k and d of the ancestral step x ← k (x + c s) + d z.

        Raises:
          PdsError: the SDE has no such step.
        """
        name = type(self).__name__
        raise PdsError(f"ancestral_sampling is for VE and VP, not {name}: no form for {name}; use reverse_diffusion")

    def check(self, predictor: str, corrector: str) -> None:
        """Refuse a predictor or corrector that this SDE does not support.

        Raises:
          PdsError: says what would do.
        """
        if predictor == "ancestral_sampling":
            self.ancestral(jnp.ones(1))

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
        """Standard deviation of the standard prior, std(T) unless replaced."""
        return self.std(jnp.full(1, self.T, jnp.float32))[0]

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

    sigma_min: Any
    sigma_max: Any
    default_eps = 1e-5

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50, N: int = 1000):  # noqa: N803
        low, high = float(sigma_min), float(sigma_max)
        if not 0 < low < high < math.inf:
            raise PdsError(f"VESDE needs 0 < sigma_min < sigma_max, got sigma_min={low:g}, sigma_max={high:g}")
        n = _checked_scales(N)
        self.__dict__.update(sigma_min=np.float32(low), sigma_max=np.float32(high), N=np.int32(n))
        self.__dict__.update(self.tables(n))

    def tables(self, N: int) -> dict[str, np.ndarray]:  # noqa: N803
        """The N geometric levels."""
        low, high = (math.log(_python_float(value)) for value in (self.sigma_min, self.sigma_max))
        return {"_sigmas": _table(np.exp(_two_sided_grid(low, high, N).astype(np.float64)))}

    @property
    def discrete_sigmas(self) -> Any:
        """(N,) the levels σ_i, increasing."""
        return _unpadded(self.__dict__["_sigmas"], self.N)

    def label(self, t: Array, continuous: bool) -> Array:
        """σ(t), or the level counted from the noisiest, round((1 − t)(N − 1))."""
        if continuous:
            return self.std(t)
        return jnp.round((self.T - t) * jnp.float32(self.N - 1)).astype(jnp.int32)

    def net_std(self, t: Array, continuous: bool) -> None:
        """The output is the score."""

    def ancestral(self, t: Array) -> tuple[Array, Array, Array]:
        """σ_i² − σ_{i−1}², 1 and √(σ_{i−1}² (σ_i² − σ_{i−1}²)/σ_i²)."""
        sigma, below = self.levels(t)
        gap = (sigma - below) * (sigma + below)
        return gap, jnp.ones_like(gap), below / sigma * jnp.sqrt(gap)

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

    @property
    def prior_std(self) -> Any:
        """σ_max."""
        return self.sigma_max

    def levels(self, t: Array) -> tuple[Array, Array]:
        """σ_i at t (B,) and the level below, σ_{i−1}, which is 0 below the first; both (B,)."""
        k, sigmas = self.index(t), jnp.asarray(self.__dict__["_sigmas"])
        return sigmas[k], jnp.where(k == 0, jnp.float32(0), sigmas[jnp.maximum(k - 1, 0)])

    def discretize(self, x: Array, t: Array) -> tuple[Array, Array]:
        """f = 0, G = √(σ_i² − σ_{i−1}²); shapes as in :meth:`SDE.discretize`."""
        sigma, below = self.levels(t)
        # Factored: the difference of two squares cancels in float32 when N is large.
        return jnp.zeros_like(x), jnp.sqrt((sigma - below) * (sigma + below))


class _LinearBeta(SDE):
    """What VP and subVP share: β(t) = β_min + t (β_max − β_min) and m_t = exp(−½ ∫β)."""

    beta_0: Any
    beta_1: Any

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20, N: int = 1000):  # noqa: N803
        low, high = float(beta_min), float(beta_max)
        if not 0 < low <= high < math.inf:
            raise PdsError(
                f"{type(self).__name__} needs 0 < beta_min <= beta_max, got beta_min={low:g}, beta_max={high:g}"
            )
        n = _checked_scales(N)
        self.__dict__.update(beta_0=np.float32(low), beta_1=np.float32(high), N=np.int32(n))
        self.__dict__.update(self.tables(n))

    def tables(self, N: int) -> dict[str, np.ndarray]:  # noqa: N803
        """β_i = β(t_i)/N and 1 − β_i."""
        betas = self._betas_of(N)
        return {"_betas": _table(betas), "_alphas": _table(np.float32(1) - betas)}

    def _betas_of(self, n: int) -> np.ndarray:
        low, high = (_python_float(value) / n for value in (self.beta_0, self.beta_1))
        return _two_sided_grid(low, high, n)

    @property
    def discrete_betas(self) -> Any:
        """(N,) β_i."""
        return _unpadded(self.__dict__["_betas"], self.N)

    @property
    def alphas(self) -> Any:
        """(N,) 1 − β_i."""
        return _unpadded(self.__dict__["_alphas"], self.N)

    @property
    def prior_std(self) -> Any:
        """1."""
        return jnp.float32(1)

    def check(self, predictor: str, corrector: str, *, uses_alpha: bool = False) -> None:
        """Refuse β_i > 1 where 1 − β_i is used; at β_i = 1 ancestral sampling alone divides by zero."""
        SDE.check(self, predictor, corrector)
        largest = float(np.asarray(self.discrete_betas).max())
        needed = uses_alpha or corrector in _USE_ALPHA
        if (needed and largest > 1) or (predictor == "ancestral_sampling" and largest >= 1):
            raise PdsError(
                f"{type(self).__name__} with N={int(self.N)} levels has beta_max/N = {largest:.3g}, but predictor "
                f"{predictor!r} with corrector {corrector!r} needs 1 - beta_i: use more steps (a smaller speed_up, N > "
                f"{float(self.beta_1):g}), corrector none, or another predictor such as euler_maruyama or ddim"
            )

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
        return jnp.asarray(self.__dict__["_alphas"])[self.index(t)]

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

    def tables(self, N: int) -> dict[str, np.ndarray]:  # noqa: N803
        """DDPM's tables beside those of β."""
        tables = super().tables(N)
        cumprod = np.cumprod(1 - tables["_betas"][:N].astype(np.float64))
        with np.errstate(invalid="ignore"):
            roots = _table(np.sqrt(cumprod)), _table(np.sqrt(1 - cumprod))
        return {**tables, "_alphas_cumprod": _table(cumprod), "_signal": roots[0], "_noise": roots[1]}

    @property
    def alphas_cumprod(self) -> Any:
        """(N,) ᾱ_i, the products of 1 − β."""
        return _unpadded(self.__dict__["_alphas_cumprod"], self.N)

    @property
    def sqrt_alphas_cumprod(self) -> Any:
        """(N,) √ᾱ_i."""
        return _unpadded(self.__dict__["_signal"], self.N)

    @property
    def sqrt_1m_alphas_cumprod(self) -> Any:
        """(N,) √(1 − ᾱ_i)."""
        return _unpadded(self.__dict__["_noise"], self.N)

    def net_std(self, t: Array, continuous: bool) -> Array:
        """std(t), or that of the level int(t (N − 1))."""
        return self.std(t) if continuous else jnp.asarray(self.__dict__["_noise"])[self.index(t)]

    def ancestral(self, t: Array) -> tuple[Array, Array, Array]:
        """β_i, 1/√(1 − β_i) and √β_i."""
        beta = jnp.asarray(self.__dict__["_betas"])[self.index(t)]
        return beta, 1 / jnp.sqrt(1 - beta), jnp.sqrt(beta)

    def check(self, predictor: str, corrector: str, *, uses_alpha: bool = False) -> None:
        """As its base class; reverse diffusion uses 1 − β_i too."""
        super().check(predictor, corrector, uses_alpha=uses_alpha or predictor == "reverse_diffusion")

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
        alpha, beta = (jnp.asarray(self.__dict__[name])[k] for name in ("_alphas", "_betas"))
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


SDES: Registry[type[SDE]] = Registry("SDE", {"vesde": VESDE, "vpsde": VPSDE, "subvpsde": subVPSDE})
register_sde = SDES.register


def get_sde(config: Any, N: int | None = None) -> tuple[SDE, float]:  # noqa: N803
    """The SDE of a configuration, and the smallest time of sampling.

    Args:
      config: with training.sde ('vesde', 'vpsde', 'subvpsde', or a name given to ``register_sde``), the model's
        num_scales and the arguments of the SDE (sigma_min, sigma_max; beta_min, beta_max).
      N: number of levels in place of config.model.num_scales.

    Returns:
      The SDE and its default_eps: 1e-5 for VE, 1e-3 for VP and subVP.

    Raises:
      PdsError: unknown name, or bad levels.
    """
    found = SDES.find(str(config.training.sde).lower())
    sde = found.from_config(config.model, config.model.num_scales if N is None else N)
    return sde, sde.default_eps


def _flatten(sde: SDE) -> tuple[Any, Any]:
    """Numbers and arrays are leaves, everything else is static; what was a leaf once remains one."""
    values = dict(sde.__dict__)
    names = values.pop(_LEAVES, None) or tuple(sorted(name for name in values if _is_leaf(values[name])))
    static = tuple((name, value) for name, value in sorted(values.items()) if name not in names)
    return tuple((jax.tree_util.GetAttrKey(name), values[name]) for name in names), (names, static)


def _unflatten(cls: type[SDE], static: Any, leaves: Any) -> SDE:
    sde = object.__new__(cls)
    sde.__dict__.update({_LEAVES: static[0], **dict(static[1]), **dict(zip(static[0], leaves, strict=True))})
    return sde


def _is_leaf(value: Any) -> bool:
    return hasattr(value, "dtype") or (isinstance(value, int | float) and not isinstance(value, bool))


def _unpadded(table: Any, n: Any) -> Any:
    """The N values of a table; all of it inside a compiled function, where N is no number."""
    return table if isinstance(n, jax.core.Tracer) else table[: int(n)]


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
