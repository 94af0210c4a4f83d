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
from pds_jax.types import Array, PdsError, ScoreFn, unknown_name


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
        """α, σ and the network's time where σ/α is a given noise level.

        The time and log(α² + σ²) are linear in log level between entries, and constant beyond the ends of the table.

        Args:
          level: (B,) noise levels, > 0.

        Returns:
          α, σ and the time, each (B,).
        """
        log_level = jnp.log(level)
        norm = jnp.exp(0.5 * jnp.interp(log_level, self.log_levels, self.log_norms))
        alpha = norm / jnp.sqrt(1 + jnp.square(level))
        return alpha, alpha * level, jnp.interp(log_level, self.log_levels, self.times)


def schedule(alpha: Any, sigma: Any, times: Any = None) -> Schedule:
    """The schedule x_k = α_k x_0 + σ_k ε of a network, from tables.

    Args:
      alpha: (n,) α_k, n ≥ 2, finite and above 0.
      sigma: (n,) σ_k, finite and above 0, with σ_k/α_k strictly monotone.
      times: (n,) what the network takes for k, finite; None for 0, 1, ..., n − 1.

    Returns:
      The schedule; its tables are float32, in ascending order of noise level.

    Raises:
      PdsError: fewer than two entries, tables of different shapes, an entry that is not as above, or noise levels that
        are not strictly monotone.
    """
    alpha, sigma = (np.asarray(values, np.float64) for values in (alpha, sigma))
    times = np.arange(alpha.size, dtype=np.float64) if times is None else np.asarray(times, np.float64)
    if alpha.ndim != 1 or alpha.size < 2 or alpha.shape != sigma.shape or alpha.shape != times.shape:
        raise PdsError(
            "a schedule needs alpha, sigma and times of one shape (n,) with n >= 2, got "
            f"{alpha.shape}, {sigma.shape} and {times.shape}"
        )
    for name, values, lowest, needed in (
        ("alpha", alpha, 0.0, "finite and above 0"),
        ("sigma", sigma, 0.0, "finite and above 0"),
        ("times", times, -np.inf, "finite"),
    ):
        bad = np.flatnonzero(~(np.isfinite(values) & (values > lowest)))
        if bad.size:
            raise PdsError(f"schedule: {name}[{bad[0]}]={values[bad[0]]:g}; every entry must be {needed}")
    levels, norms = np.log(sigma) - np.log(alpha), np.log(np.square(alpha) + np.square(sigma))
    step = 1 if levels[-1] > levels[0] else -1
    if not (np.diff(levels[::step]) > 0).all():
        raise PdsError("schedule: sigma/alpha must be strictly monotone; sort the tables, or remove equal entries")
    return Schedule(*(np.asarray(table[::step], np.float32) for table in (levels, norms, times)))


def ddpm_schedule(name: str, n: int = 1000, *, rescale_timesteps: bool = False) -> Schedule:
    """The schedule of a DDPM with n steps, times 0 to n − 1: α_k = √ᾱ_k, σ_k = √(1 − ᾱ_k), ᾱ_k = Π (1 − β_i).

    "linear": β from 0.1/n to 20/n. "cosine": ᾱ ∝ cos²(½π (k/n + 0.008)/1.008), β at most 0.999.

    Args:
      name: "linear" or "cosine".
      n: number of steps.
      rescale_timesteps: whether the network takes 1000 k/n for step k, as the option of this name in improved-diffusion
        and guided-diffusion says.

    Returns:
      The schedule.

    Raises:
      PdsError: unknown name.

    Source: Ho et al., NeurIPS 2020 (linear); Nichol and Dhariwal, ICML 2021 (cosine).
    """
    betas = ddpm_betas(name, n)
    alpha_bar = np.cumprod(1 - betas)
    times = np.arange(n) * (1000 / n) if rescale_timesteps else None
    return schedule(np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar), times)


def ddpm_betas(name: str, n: int = 1000) -> np.ndarray:
    """The β of :func:`ddpm_schedule`.

    Args:
      name: "linear" or "cosine".
      n: number of steps.

    Returns:
      (n,) float64.

    Raises:
      PdsError: unknown name.
    """
    if name == "linear":
        return np.linspace(0.1 / n, 20 / n, n)
    if name == "cosine":
        alpha_bar = np.square(np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * np.pi / 2))
        return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    raise PdsError(unknown_name("noise schedule", name, ("linear", "cosine")))


@flax.struct.dataclass
class DenoiserScore:
    """Score of a denoiser; made by :func:`from_denoiser`.

    Attributes:
      predict: D, (x̄ (B, H, W, C), σ̄ (B,)) -> (B, H, W, C).
      sde: SDE of the score.
      evaluations: network evaluations a call.
    """

    predict: Any
    sde: SDE
    evaluations: int = flax.struct.field(pytree_node=False, default=1)

    def __call__(self, x: Array, t: Array) -> Array:
        """Score (B, H, W, C) float32 at x (B, H, W, C), t (B,)."""
        scale, std = self.sde.mean_scale(t), self.sde.std(t)
        denoised = self.predict(batch_mul(1 / scale, x), std / scale)
        return batch_mul(1 / jnp.square(std), batch_mul(scale, denoised) - x)

    def with_labels(self, labels: Array | None) -> DenoiserScore:
        """The same score for other labels (B, label_dim).

        Raises:
          PdsError: the prediction has no method ``with_labels``, or does not take these labels.
        """
        return self.replace(predict=_relabelled(self.predict, labels))  # type: ignore[attr-defined,no-any-return]


@flax.struct.dataclass
class NoiseScore:
    """Score of a network that predicts ε, or v; made by :func:`from_epsilon` and :func:`from_v`.

    Attributes:
      predict: ε or v, (x (B, H, W, C), time (B,)) -> (B, H, W, C).
      sde: SDE of the score.
      schedule: of the network; None for a network of the SDE itself.
      velocity: whether the network predicts v.
      evaluations: network evaluations a call.
    """

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
        """The same score for other labels (B, label_dim).

        Raises:
          PdsError: the prediction has no method ``with_labels``, or does not take these labels.
        """
        return self.replace(predict=_relabelled(self.predict, labels))  # type: ignore[attr-defined,no-any-return]


def from_denoiser(denoise: Any, sde: SDE, *, evaluations: int = 1) -> ScoreFn:
    """Score of a denoiser D(x̄; σ̄) = E[x_0 | x̄], x̄ = x_0 + σ̄ ε: s(x, t) = (m_t D(x/m_t; std/m_t) − x)/std².

    >>> import jax.numpy as jnp
    >>> from pds_jax import VESDE, adapters
    >>> score = adapters.from_denoiser(lambda x, sigma: 0 * x, VESDE(0.01, 50))  # all data are 0
    >>> float(score(jnp.full((1, 8, 8, 3), 2500.0), jnp.ones(1))[0, 0, 0, 0].round(4))
    -1.0

    Args:
      denoise: D, a callable (x̄ (B, H, W, C) float32, σ̄ (B,) float32) -> (B, H, W, C). A pytree of arrays is traced, a
        plain function is static.
      sde: SDE to sample with.
      evaluations: network evaluations a call.

    Returns:
      score(x (B, H, W, C), t (B,)) -> (B, H, W, C), a pytree.

    Raises:
      PdsError: ``denoise`` is not callable.

    Source: Karras et al., NeurIPS 2022, equation 3, with the mean scale m_t of the SDE.
    """
    return DenoiserScore(as_pytree(denoise), sde, evaluations)


def from_epsilon(
    epsilon: Any, sde: SDE, *, alpha: Any = None, sigma: Any = None, times: Any = None, evaluations: int = 1
) -> ScoreFn:
    """Score of a noise prediction ε(x, time): s(x, t) = −ε/std.

    Without tables the network belongs to this SDE and takes its t. With tables it belongs to the schedule
    x_k = α_k x_0 + σ_k ε; it is then evaluated at the time k where σ_k/α_k = std/m_t, for the input α_k x/m_t.

    Args:
      epsilon: a callable (x (B, H, W, C) float32, time (B,) float32) -> (B, H, W, C). A pytree of arrays is traced, a
        plain function is static.
      sde: SDE to sample with.
      alpha: (n,) α_k, or a :class:`Schedule`; None for a network of this SDE.
      sigma: (n,) σ_k; None where ``alpha`` is None or a schedule.
      times: (n,) the network's times, interpolated between entries; None for 0, 1, ..., n − 1.
      evaluations: network evaluations a call.

    Returns:
      score(x (B, H, W, C), t (B,)) -> (B, H, W, C), a pytree.

    Raises:
      PdsError: ``epsilon`` is not callable, alpha or sigma is missing beside the other tables, or the tables are not
        those of a :func:`schedule`.

    Source: Song et al., ICLR 2021.
    """
    return NoiseScore(as_pytree(epsilon), sde, _tables(alpha, sigma, times), False, evaluations)


def from_v(
    v: Any, sde: SDE, *, alpha: Any = None, sigma: Any = None, times: Any = None, evaluations: int = 1
) -> ScoreFn:
    """Score of a prediction of v = α ε − σ x_0: s(x, t) = −ε/std with ε = (σ x + α v)/(α² + σ²).

    Args:
      v: a callable (x (B, H, W, C) float32, time (B,) float32) -> (B, H, W, C).
      sde: SDE to sample with.
      alpha: (n,) α_k, or a :class:`Schedule`; None for a network of this SDE.
      sigma: (n,) σ_k; None where ``alpha`` is None or a schedule.
      times: (n,) the network's times, interpolated between entries; None for 0, 1, ..., n − 1.
      evaluations: network evaluations a call.

    Returns:
      score(x (B, H, W, C), t (B,)) -> (B, H, W, C), a pytree.

    Raises:
      PdsError: as :func:`from_epsilon`.

    Source: Salimans and Ho, ICLR 2022, appendix D.
    """
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
        raise PdsError("this network takes no labels: its prediction function has no method with_labels(labels)")
    return predict.with_labels(labels)
