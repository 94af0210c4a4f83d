"""Networks of EDM and guided-diffusion as denoisers and noise predictions, and their score functions from a config.

EDM wraps a network F in one of four ways, D(x; σ) = c_skip x + c_out F(c_in x; c_noise):

    edm    σ_d²/(σ² + σ_d²)   σ σ_d/√(σ² + σ_d²)   1/√(σ² + σ_d²)   ln(σ)/4
    ve     1                   σ                     1                 ln(σ/2)
    vp     1                   −σ                    1/√(σ² + 1)       (M − 1) t(σ)
    iddpm  1                   −σ                    1/√(σ² + 1)       M − 1 − j, u_j the level nearest to σ

with t(σ) = (√(β_min² + 2 β_d ln(1 + σ²)) − β_min)/β_d. Source: Karras et al., NeurIPS 2022, table 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from pds_jax import adapters
from pds_jax.ops import batch_mul
from pds_jax.sde_lib import SDE
from pds_jax.types import Array, PdsError, ScoreFn, check_choice

PRECONDITIONINGS = ("edm", "ve", "vp", "iddpm")
PARAMETRISATIONS = ("denoiser", "epsilon")


def iddpm_levels(m: int, c_1: float, c_2: float) -> np.ndarray:
    """Noise levels u_0 > ... > u_M = 0 of iDDPM's preconditioning.

    u_{j−1}² + 1 = (u_j² + 1)/max(ᾱ_{j−1}/ᾱ_j, C_1) with ᾱ_j = sin²(π j/(2 M (C_2 + 1))), in float32 as the snapshots
    hold them.

    Args:
      m: M.
      c_1: C_1.
      c_2: C_2.

    Returns:
      (M + 1,) float32.

    Source: Karras et al., NeurIPS 2022, table 1.
    """
    j = np.arange(m + 1, dtype=np.float32)
    alpha_bar = np.square(np.sin(np.float32(0.5 * np.pi) * j / np.float32(m) / np.float32(c_2 + 1)))
    u = np.zeros(m + 1, np.float32)
    for i in range(m, 0, -1):
        ratio = np.maximum(alpha_bar[i - 1] / alpha_bar[i], np.float32(c_1))
        u[i - 1] = np.sqrt((np.square(u[i]) + 1) / ratio - 1)
    return u


@flax.struct.dataclass
class Denoiser:
    """D(x; σ, labels) of a network; a pytree.

    Attributes:
      params: the network's parameters.
      labels: (B, label_dim), one row an image, or None for the zero vector.
      levels: (M + 1,) of iDDPM, or None.
      model: the network.
      kind: of :data:`PRECONDITIONINGS`.
      sigma_data: σ_d.
      beta_d, beta_min, m: constants of vp; m also of iddpm.
    """

    params: Any
    labels: Any = None
    levels: Any = None
    model: Any = flax.struct.field(pytree_node=False, default=None)
    kind: str = flax.struct.field(pytree_node=False, default="edm")
    sigma_data: float = flax.struct.field(pytree_node=False, default=0.5)
    beta_d: float = flax.struct.field(pytree_node=False, default=19.9)
    beta_min: float = flax.struct.field(pytree_node=False, default=0.1)
    m: int = flax.struct.field(pytree_node=False, default=1000)

    def __call__(self, x: Array, sigma: Array, augment_labels: Array | None = None) -> Array:
        """D float32 (B, H, W, C) of x (B, H, W, C) and σ (B,); augment_labels (B, augment_dim) or None."""
        skip, out, scale, noise = self.scalings(sigma)
        f = self.network(batch_mul(scale, x), noise, augment_labels)
        return batch_mul(skip, x) + batch_mul(out, f)

    def network(self, x: Array, noise: Array, augment_labels: Array | None = None) -> Array:
        """F, its first C channels, of an input already scaled."""
        given = {} if augment_labels is None else {"augment_labels": augment_labels}
        out = _apply(self.model, self.params, x, noise, self.labels, **given)
        return out[..., : x.shape[-1]]

    def scalings(self, sigma: Array) -> tuple[Array, Array, Array, Array]:
        """c_skip, c_out, c_in and c_noise, all (B,) float32."""
        one, square = jnp.ones_like(sigma), jnp.square(sigma)
        if self.kind == "edm":
            norm = jnp.sqrt(square + self.sigma_data**2)
            skip = self.sigma_data**2 / (square + self.sigma_data**2)
            return skip, sigma * self.sigma_data / norm, 1 / norm, jnp.log(sigma) / 4
        if self.kind == "ve":
            return one, sigma, one, jnp.log(0.5 * sigma)
        return one, -sigma, 1 / jnp.sqrt(square + 1), self._time(sigma)

    def _time(self, sigma: Array) -> Array:
        if self.kind == "vp":
            root = jnp.sqrt(self.beta_min**2 + 2 * self.beta_d * jnp.log1p(jnp.square(sigma)))
            return (self.m - 1) * (root - self.beta_min) / self.beta_d
        distance = jnp.abs(sigma[:, None] - jnp.asarray(self.levels)[None])
        return self.m - 1 - jnp.argmin(distance, axis=1).astype(jnp.float32)

    def round_sigma(self, sigma: Array) -> Array:
        """The noise level (B,) that the network is asked for: σ itself, or iDDPM's nearest."""
        if self.levels is None:
            return sigma
        levels = jnp.asarray(self.levels)
        return levels[jnp.argmin(jnp.abs(sigma[:, None] - levels[None]), axis=1)]

    def with_labels(self, labels: Array | None) -> Denoiser:
        """The same denoiser for other labels (B, label_dim), None for the zero vector.

        Raises:
          PdsError: the network takes no labels, or labels of another width.
        """
        _check_labels(self.model, labels)
        return self.replace(labels=labels)  # type: ignore[attr-defined,no-any-return]


@flax.struct.dataclass
class NoisePrediction:
    """ε(x, time, labels) of a network that may predict variances in further channels; a pytree.

    Attributes:
      params: the network's parameters.
      labels: (B, label_dim), one row an image, or None for the zero vector.
      model: the network.
    """

    params: Any
    labels: Any = None
    model: Any = flax.struct.field(pytree_node=False, default=None)

    def __call__(self, x: Array, time: Array) -> Array:
        """ε (B, H, W, C) float32 of x (B, H, W, C) and the network's time (B,); variance channels are dropped."""
        return _apply(self.model, self.params, x, time, self.labels)[..., : x.shape[-1]]

    def with_labels(self, labels: Array | None) -> NoisePrediction:
        """The same network for other labels (B, label_dim), None for the zero vector.

        Raises:
          PdsError: the network takes no labels, or labels of another width.
        """
        _check_labels(self.model, labels)
        return self.replace(labels=labels)  # type: ignore[attr-defined,no-any-return]


def _check_labels(model: Any, labels: Array | None) -> None:
    width = getattr(model, "label_dim", 0)
    if labels is None or (width and labels.shape[-1] == width):
        return
    if not width:
        raise PdsError("this network takes no labels: it was trained without classes")
    raise PdsError(f"labels have {labels.shape[-1]} numbers an image, this network was trained with {width} classes")


def _apply(model: Any, params: Any, x: Array, noise: Array, labels: Any, **given: Any) -> Array:
    if labels is not None:
        given["labels"] = labels
    out: Array = model.apply({"params": params}, x, noise, train=False, **given)
    return out.astype(jnp.float32)


def get_denoiser(config: Any, model: Any, params: Any) -> Denoiser:
    """Denoiser of a config with ``model.parametrisation = "denoiser"``.

    Args:
      config: with model.{preconditioning, sigma_data, beta_min, beta_max, levels}, and c_1, c_2 for "iddpm".
      model: network.
      params: its parameters.

    Returns:
      D, a pytree.

    Raises:
      PdsError: unknown preconditioning.
    """
    fields = config.model
    kind = fields.preconditioning
    check_choice("model.preconditioning", kind, PRECONDITIONINGS)
    levels = iddpm_levels(fields.levels, fields.c_1, fields.c_2) if kind == "iddpm" else None
    return Denoiser(
        params,
        levels=levels,
        model=model,
        kind=kind,
        sigma_data=float(fields.sigma_data),
        beta_d=float(fields.beta_max) - float(fields.beta_min),
        beta_min=float(fields.beta_min),
        m=int(fields.levels),
    )


def get_score(config: Any, sde: SDE, model: Any, params: Any) -> ScoreFn:
    """Score function of a denoiser or a noise prediction, as ``model.parametrisation`` says, under any SDE.

    Args:
      config: see :func:`get_denoiser`; for a noise prediction with model.{noise_schedule, diffusion_steps} and, if it
        takes other times than 0, 1, ..., model.rescale_timesteps.
      sde: SDE to sample with.
      model: network.
      params: its parameters.

    Returns:
      score(x (B, H, W, C), t (B,)) -> (B, H, W, C) float32, a pytree.

    Raises:
      PdsError: unknown preconditioning or noise schedule.
    """
    if config.model.parametrisation == "denoiser":
        return adapters.from_denoiser(get_denoiser(config, model, params), sde)
    return adapters.from_epsilon(NoisePrediction(params, model=model), sde, alpha=_schedule(config))


def _schedule(config: Any) -> adapters.Schedule:
    """The schedule of a config's noise prediction or classifier."""
    model = config.model
    rescaled = bool(model.get("rescale_timesteps", False))
    return adapters.ddpm_schedule(model.noise_schedule, model.diffusion_steps, rescale_timesteps=rescaled)


def denoising_errors(score_fn: ScoreFn, sde: SDE, images: Array, levels: Sequence[float], seed: int = 0) -> np.ndarray:
    """Mean squared error of a score's denoiser relative to the noise, E‖D(x_0 + σ ε; σ) − x_0‖²/(σ² dim).

    D = (x_t + std² s)/m_t. A trained network is well below 1 everywhere; one that is used differently than in training
    is not.

    Args:
      score_fn: score function, a pytree.
      sde: SDE of the score.
      images: (B, H, W, C) clean images in the model's range.
      levels: (L,) noise levels σ in the units of that range.
      seed: of the noise, the same at every level.

    Returns:
      (L,) float64.

    Raises:
      PdsError: a level that the SDE does not have between t = 0 and t = 1.
    """
    x0 = jnp.asarray(images, jnp.float32)
    noise = jax.random.normal(jax.random.key(seed), x0.shape)

    @jax.jit
    def error(score_fn: ScoreFn, t: Array) -> Array:
        t = jnp.broadcast_to(t, x0.shape[:1])
        m, std = sde.mean_scale(t), sde.std(t)
        x = batch_mul(m, x0) + batch_mul(std, noise)
        denoised = batch_mul(1 / m, x + batch_mul(jnp.square(std), score_fn(x, t)))
        return jnp.mean(jnp.square(denoised - x0)) / jnp.mean(jnp.square(std / m))

    times = np.asarray(sde.t_of_level(np.asarray(levels)), np.float32)
    if not ((times >= 0) & (times <= 1)).all():
        raise PdsError(f"noise levels {list(levels)}: use levels between those of the SDE at t = 0 and t = 1")
    return np.asarray([float(error(score_fn, t)) for t in times])


@flax.struct.dataclass
class NoisyLogits:
    """Logits of a classifier of a DDPM's images, as a function of x_0 + σ ε and σ; a pytree.

    This is the ``logit_fn`` of ``controllable_generation.class_conditional``.

    Attributes:
      params: the classifier's parameters.
      schedule: of the diffusion it was trained with.
      model: the classifier.
    """

    params: Any
    schedule: adapters.Schedule
    model: Any = flax.struct.field(pytree_node=False, default=None)

    def __call__(self, x: Array, sigma: Array) -> Array:
        """Logits (B, K) of x (B, H, W, C) at noise levels (B,)."""
        alpha, _, time = self.schedule.at(sigma)
        return _apply(self.model, self.params, batch_mul(alpha, x), time, None)


def get_logits(config: Any, model: Any, params: Any) -> NoisyLogits:
    """Logits of a config with ``model.name = "adm_classifier"``.

    Args:
      config: with model.{noise_schedule, diffusion_steps} and maybe model.rescale_timesteps.
      model: classifier.
      params: its parameters.

    Returns:
      logit_fn(x (B, H, W, C), σ (B,)) -> (B, K), a pytree.

    Raises:
      PdsError: unknown noise schedule.
    """
    return NoisyLogits(params, _schedule(config), model)
