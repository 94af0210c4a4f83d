"""Any network as a score function: a denoiser, a noise prediction, a v prediction, under any of the SDEs.

With x̄ = x/m_t and the noise level σ̄ = std(t)/m_t of an SDE, every prediction gives the score by

    s(x, t) = (m_t D(x̄; σ̄) − x)/std²  = −ε/std,        ε = (x̄ − D)/σ̄.

A network of another noise schedule x_k = α_k x_0 + σ_k ε is asked at the time k where σ_k/α_k = σ̄, for the input
α_k x̄; so one network serves every SDE. Each function returns a pytree that is called as ``score(x, t)``.

Source: Song et al., ICLR 2021; Karras et al., NeurIPS 2022, equation 3; Salimans and Ho, ICLR 2022, appendix D for v.
The change of schedule is derived here.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np

from pds_jax.ops import batch_mul
from pds_jax.scores import as_pytree
from pds_jax.sde_lib import SDE
from pds_jax.types import Array, PdsError, ScoreFn


@flax.struct.dataclass
class Schedule:
    """The schedule x_k = α_k x_0 + σ_k ε of a network, by its noise level.

    Attributes:
      log_levels: (n,) log(σ_k/α_k), ascending.
      log_norms: (n,) log(α_k² + σ_k²).
      times: (n,) what the network takes for k.
    """

    log_levels: Any
    log_norms: Any
    times: Any

    def at(self, level: Array) -> tuple[Array, Array, Array]:
        """α, σ and the network's time, all (B,), where σ/α = level (B,); linear in log level between entries.

        Beyond the ends of the table the time stays at the end's.
        """
        log_level = jnp.log(level)
        norm = jnp.exp(0.5 * jnp.interp(log_level, self.log_levels, self.log_norms))
        alpha = norm / jnp.sqrt(1 + jnp.square(level))
        return alpha, alpha * level, jnp.interp(log_level, self.log_levels, self.times)


def schedule(alpha: Any, sigma: Any, times: Any = None) -> Schedule:
    """Schedule from tables α_k > 0 and σ_k > 0, both (n,), and the network's times (n,), by default 0, 1, ..., n − 1.

    Raises PdsError unless σ_k/α_k is strictly monotone and every entry finite.
    """
    alpha, sigma = (np.asarray(values, np.float64) for values in (alpha, sigma))
    times = np.arange(alpha.size, dtype=np.float64) if times is None else np.asarray(times, np.float64)
    if alpha.ndim != 1 or alpha.size < 2 or alpha.shape != sigma.shape or alpha.shape != times.shape:
        raise PdsError(
            "a schedule needs alpha, sigma and times of one shape (n,) with n >= 2, got "
            f"{alpha.shape}, {sigma.shape} and {times.shape}"
        )
    if not (np.isfinite([alpha, sigma, times]).all() and (alpha > 0).all() and (sigma > 0).all()):
        raise PdsError("alpha and sigma of a schedule must be finite and above 0, times finite")
    levels, norms = np.log(sigma) - np.log(alpha), np.log(np.square(alpha) + np.square(sigma))
    step = 1 if levels[-1] > levels[0] else -1
    if not (np.diff(levels[::step]) > 0).all():
        raise PdsError("sigma/alpha of a schedule must rise or fall strictly")
    return Schedule(*(np.asarray(table[::step], np.float32) for table in (levels, norms, times)))


def ddpm_schedule(name: str, n: int = 1000) -> Schedule:
    """The schedule of a DDPM with n steps, times 0 to n − 1: α_k = √ᾱ_k, σ_k = √(1 − ᾱ_k), ᾱ_k = Π (1 − β_i).

    "linear": β from 0.1/n to 20/n (Ho et al. 2020). "cosine": ᾱ ∝ cos²(½π (k/n + 0.008)/1.008), β at most 0.999
    (Nichol and Dhariwal 2021). Raises PdsError for another name.
    """
    betas = ddpm_betas(name, n)
    alpha_bar = np.cumprod(1 - betas)
    return schedule(np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar))


def ddpm_betas(name: str, n: int = 1000) -> np.ndarray:
    """(n,) float64 β of :func:`ddpm_schedule`."""
    if name == "linear":
        return np.linspace(0.1 / n, 20 / n, n)
    if name == "cosine":
        alpha_bar = np.square(np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * np.pi / 2))
        return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    raise PdsError(f"unknown noise schedule {name!r}; known: linear, cosine")


@flax.struct.dataclass
class DenoiserScore:
    """Score of a denoiser; see :func:`from_denoiser`."""

    predict: Any
    sde: SDE
    evaluations: int = flax.struct.field(pytree_node=False, default=1)

    def __call__(self, x: Array, t: Array) -> Array:
        """Score (B, H, W, C) float32 at x (B, H, W, C), t (B,)."""
        scale, std = self.sde.mean_scale(t), self.sde.std(t)
        denoised = self.predict(batch_mul(1 / scale, x), std / scale)
        return batch_mul(1 / jnp.square(std), batch_mul(scale, denoised) - x)

    def with_labels(self, labels: Array | None) -> DenoiserScore:
        """The same score for other labels (B, label_dim); PdsError if the prediction takes none."""
        return self.replace(predict=_relabelled(self.predict, labels))  # type: ignore[attr-defined,no-any-return]


@flax.struct.dataclass
class NoiseScore:
    """Score of a network that predicts ε, or v; see :func:`from_epsilon` and :func:`from_v`."""

    predict: Any
    sde: SDE
    schedule: Schedule | None = None
    velocity: bool = flax.struct.field(pytree_node=False, default=False)
    evaluations: int = flax.struct.field(pytree_node=False, default=1)

    def __call__(self, x: Array, t: Array) -> Array:
        """Score (B, H, W, C) float32 at x (B, H, W, C), t (B,)."""
        alpha, std = self.sde.mean_scale(t), self.sde.std(t)
        sigma, time = std, t
        if self.schedule is not None:
            scale = alpha
            alpha, sigma, time = self.schedule.at(std / scale)
            x = batch_mul(alpha / scale, x)
        out = self.predict(x, time)
        if self.velocity:
            norm = jnp.square(alpha) + jnp.square(sigma)
            out = batch_mul(sigma / norm, x) + batch_mul(alpha / norm, out)
        return batch_mul(-1 / std, out)

    def with_labels(self, labels: Array | None) -> NoiseScore:
        """The same score for other labels (B, label_dim); PdsError if the prediction takes none."""
        return self.replace(predict=_relabelled(self.predict, labels))  # type: ignore[attr-defined,no-any-return]


def from_denoiser(denoise: Any, sde: SDE, *, evaluations: int = 1) -> ScoreFn:
    """Score s = (m_t D(x/m_t; std/m_t) − x)/std² of a denoiser D(x̄; σ̄) = E[x_0 | x̄], x̄ = x_0 + σ̄ ε.

    ``denoise(x, sigma)`` takes (B, H, W, C) and (B,); a pytree stays one, a plain function is compiled in.
    ``evaluations`` is how many network evaluations a call costs.
    """
    return DenoiserScore(as_pytree(denoise), sde, evaluations)


def from_epsilon(
    epsilon: Any, sde: SDE, *, alpha: Any = None, sigma: Any = None, times: Any = None, evaluations: int = 1
) -> ScoreFn:
    """Score s = −ε/std of a noise prediction ε(x, time).

    Without tables the network is of this very SDE and takes its t. With ``alpha`` and ``sigma`` (n,) it is of the
    schedule x_k = α_k x_0 + σ_k ε and takes ``times`` (n,), by default 0 to n − 1, interpolated. Raises PdsError as
    :func:`schedule` does.
    """
    return NoiseScore(as_pytree(epsilon), sde, _tables(alpha, sigma, times), False, evaluations)


def from_v(
    v: Any, sde: SDE, *, alpha: Any = None, sigma: Any = None, times: Any = None, evaluations: int = 1
) -> ScoreFn:
    """Score of a prediction of v = α ε − σ x_0, by ε = (σ x + α v)/(α² + σ²); arguments as :func:`from_epsilon`."""
    return NoiseScore(as_pytree(v), sde, _tables(alpha, sigma, times), True, evaluations)


def _tables(alpha: Any, sigma: Any, times: Any) -> Schedule | None:
    if isinstance(alpha, Schedule):
        return alpha
    if alpha is None and sigma is None and times is None:
        return None
    if alpha is None or sigma is None:
        raise PdsError("give alpha and sigma of the network's schedule, or neither for a network of this SDE")
    return schedule(alpha, sigma, times)


def _relabelled(predict: Any, labels: Array | None) -> Any:
    if not hasattr(predict, "with_labels"):
        raise PdsError("this network takes no labels: what predicts needs a method with_labels(labels)")
    return predict.with_labels(labels)
