"""Score functions of networks.

    VE             s = net(x, σ(t))                        continuous
                   s = net(x, round((1 − t)(N − 1)))       trained on N discrete levels; label 0 is the noisiest
    VP and subVP   s = −net(x, 999 t)/std(t)               continuous (subVP always)
    VP             s = −net(x, t (N − 1))/std_k            discrete, std_k from the table at k = int(t (N − 1))

These are the conventions of Song et al., ICLR 2021, and of its code (``parametrisation="score_sde"``). With "edm"
(Karras et al.) and "wiener" (derived here) the network is part of a denoiser, see :func:`get_score_fn`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from pds_jax.ops import batch_mul
from pds_jax.sde_lib import SDE
from pds_jax.spectral import plane_mean, wiener_step
from pds_jax.types import Array, PdsError, ScoreFn, check_choice

PARAMETRISATIONS = ("score_sde", "edm", "wiener")
LABELS = ("training", "sampler")


@flax.struct.dataclass
class ModelScore:
    """Score function of a network; a pytree, so new parameters do not recompile.

    Attributes:
      params: the network's parameters.
      sde: the SDE, with the N that labels count in.
      rngs: keys for dropout in training, or None.
      mean: (H, W, C) of the data in the model's range; parametrisation "wiener" only.
      power: (H, W // 2 + 1, C) likewise.
      moments: mean μ₀ and deviation σ_d of all pixels in the model's range; parametrisation "edm" only.
      model: the network, with ``apply({'params': params}, x, time_cond, train=...)``.
      continuous: whether the network was trained on continuous times.
      train: whether dropout is on.
    """

    params: Any
    sde: SDE
    rngs: Any = None
    mean: Any = None
    power: Any = None
    moments: Any = None
    model: Any = flax.struct.field(pytree_node=False, default=None)
    continuous: bool = flax.struct.field(pytree_node=False, default=True)
    train: bool = flax.struct.field(pytree_node=False, default=False)

    def __call__(self, x: Array, t: Array) -> Array:
        """Score at x (B, H, W, C), t (B,); float32, shaped as x."""
        if self.power is not None:
            return self._wiener(x, t)
        if self.moments is not None:
            return self._edm(x, t)
        out = self._network(x, self.sde.label(t, self.continuous))
        std = self.sde.net_std(t, self.continuous)
        return out if std is None else batch_mul(-1 / std, out)

    def _network(self, x: Array, label: Array) -> Array:
        out = self.model.apply({"params": self.params}, x, label, train=self.train, rngs=self.rngs)
        return out.astype(jnp.float32)

    def _wiener(self, x: Array, t: Array) -> Array:
        scale, std = self.sde.mean_scale(t), self.sde.std(t)
        x_bar, level = batch_mul(1 / scale, x), std / scale
        c_in, tau = wiener_scales(self.power, level, x.shape[2])
        out = self._scaled_network(batch_mul(c_in, x_bar - jnp.asarray(self.mean)[None]), level, t)
        # s = (m D − x)/std² with D = D_W + τ net, in units that stay O(1) at every noise level.
        residual = wiener_step(x_bar, level, (self.mean, self.power)) + batch_mul(tau, out)
        return batch_mul(scale / jnp.square(std), residual)

    def _edm(self, x: Array, t: Array) -> Array:
        scale, std = self.sde.mean_scale(t), self.sde.std(t)
        data_mean, sigma_data = (jnp.float32(v) for v in self.moments)
        level, deviation = std / scale, batch_mul(1 / scale, x) - data_mean
        c_in, lost, c_out = edm_scales(sigma_data, level)
        out = self._scaled_network(batch_mul(c_in, deviation), level, t)
        return batch_mul(scale / jnp.square(std), batch_mul(c_out, out) - batch_mul(lost, deviation))

    def _scaled_network(self, net_in: Array, level: Array, t: Array) -> Array:
        """The network at an input of unit variance."""
        if not getattr(self.model, "centered", True):
            net_in = (net_in + 1) / 2  # the network itself maps [0, 1] to [-1, 1]
        return self._network(net_in, self.sde.label(t, True))


def edm_scales(sigma_data: Array | float, level: Array) -> tuple[Array, Array, Array]:
    """Scales of the "edm" parametrisation at noise level σ̄ (B,), each (B,).

        c_in = (σ_d² + σ̄²)^{-1/2},    1 − c_skip = σ̄²/(σ_d² + σ̄²),    c_out = σ_d σ̄ (σ_d² + σ̄²)^{-1/2}

    Source: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", table 1.
    """
    c_in = jax.lax.rsqrt(jnp.square(jnp.float32(sigma_data)) + jnp.square(level))
    return c_in, jnp.square(level * c_in), sigma_data * level * c_in


def wiener_scales(power: Array, level: Array, width: int) -> tuple[Array, Array]:
    """Scales of the "wiener" parametrisation: c_in = (mean P + σ̄²)^{-1/2}, τ = (mean Pσ̄²/(P + σ̄²))^{1/2}.

    τ² is the mean posterior variance of Gaussian data with spectrum P, so the target of the network, (x_0 − D_W)/τ,
    has unit variance when the data are Gaussian.

    Args:
      power: (H, W // 2 + 1, C) spectrum P in the model's range.
      level: (B,) noise level σ̄ of x̄ = x/m_t.
      width: W.

    Returns:
      c_in and τ, both (B,).
    """
    p, variance = jnp.asarray(power)[None], jnp.square(level)[:, None, None, None]
    c_in = 1 / jnp.sqrt(plane_mean(jnp.asarray(power), width) + jnp.square(level))
    return c_in, jnp.sqrt(plane_mean(p * variance / (p + variance), width))


def get_score_fn(
    sde: SDE,
    model: Any,
    params: Any,
    *,
    continuous: bool = True,
    train: bool = False,
    parametrisation: str = "score_sde",
    statistics: Any = None,
    data_mean: float = 0.0,
    sigma_data: float | None = None,
    rngs: Any = None,
    labels: str = "training",
    num_scales: int | None = None,
) -> ModelScore:
    """Score function of a network, see the top of this module.

    A network trained on discrete levels takes the label of the current noise level. The original codes count labels in
    the sampler's shorter N, and so use the label of another noise level if speed_up > 1. Here labels count in the N of
    training, unless ``labels="sampler"``.

    ``parametrisation="wiener"`` (derived here): the network predicts the difference to the Wiener denoiser D_W, which
    is the best linear denoiser and follows from the data's mean μ and spectrum P,

        D(x̄) = D_W(x̄) + τ(σ̄) net(c_in (x̄ − μ), σ̄),    s = (m_t D − x)/std²,    x̄ = x/m_t, σ̄ = std/m_t,

    with c_in and τ of :func:`wiener_scales`. A network that outputs zero is then the exact score of N(μ, P).

    ``parametrisation="edm"`` (Karras et al. 2022) uses one mean μ₀ and one deviation σ_d of the data:

        D(x̄) = μ₀ + c_skip (x̄ − μ₀) + c_out net(c_in (x̄ − μ₀), σ̄),    s as above,

    with the scales of :func:`edm_scales`. A network that outputs zero is then the exact score of N(μ₀, σ_d² I).

    Args:
      sde: the SDE; of training, or of the sampler with its fewer levels.
      model: the network.
      params: its parameters, traced.
      continuous: whether it was trained on continuous times (config.training.continuous).
      train: whether dropout is on.
      parametrisation: "score_sde", "edm" or "wiener" (config.model.parametrisation).
      statistics: for "wiener", (mean, power) in the model's range, ``Statistics.to_range(config.data.centered)``.
      data_mean: for "edm", μ₀ in the model's range.
      sigma_data: for "edm", σ_d in the model's range.
      rngs: keys by name for the network, {'dropout': key} where train.
      labels: "training" or "sampler", the N that the labels of a discrete network count in.
      num_scales: number of levels in training (config.model.num_scales); None if it is sde.N.

    Returns:
      The score function.

    Raises:
      PdsError: unknown parametrisation or labels; "wiener" without statistics or "edm" without sigma_data; either of
        them with ``scale_by_sigma`` or discrete.
    """
    check_choice("parametrisation", parametrisation, PARAMETRISATIONS)
    check_choice("labels", labels, LABELS)
    if parametrisation != "score_sde":
        _check_scaled(parametrisation, model, continuous)
    mean, power = _moments(statistics, model) if parametrisation == "wiener" else (None, None)
    moments = _edm_moments(data_mean, sigma_data) if parametrisation == "edm" else None
    if labels == "training" and num_scales is not None and not continuous:
        sde = sde.with_num_scales(num_scales)
    return ModelScore(
        params=params,
        sde=sde,
        rngs=rngs,
        mean=mean,
        power=power,
        moments=moments,
        model=model,
        continuous=continuous,
        train=train,
    )


def model_options(config: Any) -> dict[str, Any]:
    """What ``config.model`` says of the parametrisation, as keywords of :func:`get_score_fn`."""
    model = config.model
    return {
        "parametrisation": model.get("parametrisation", "score_sde"),
        "data_mean": float(model.get("data_mean", 0.0)),
        "sigma_data": model.get("sigma_data", None),
    }


def _check_scaled(parametrisation: str, model: Any, continuous: bool) -> None:
    if not continuous:
        raise PdsError(f"parametrisation {parametrisation!r} needs config.training.continuous = True")
    if getattr(model, "scale_by_sigma", False):
        raise PdsError(f"parametrisation {parametrisation!r} scales by itself: set config.model.scale_by_sigma = False")


def _edm_moments(data_mean: float, sigma_data: float | None) -> tuple[Any, Any]:
    if sigma_data is None or not (np.isfinite(sigma_data) and sigma_data > 0) or not np.isfinite(data_mean):
        raise PdsError(
            f"parametrisation 'edm' needs the deviation of the data's pixels, config.model.sigma_data > 0, and their "
            f"mean, config.model.data_mean; got {sigma_data} and {data_mean}"
        )
    return np.float32(data_mean), np.float32(sigma_data)


def _moments(statistics: Any, model: Any) -> tuple[Any, Any]:
    if statistics is None:
        raise PdsError(
            "parametrisation 'wiener' needs the statistics of the data that the network was trained on: keep the "
            "statistics.npz of its training beside the checkpoint"
        )
    if hasattr(statistics, "to_range"):
        if not hasattr(model, "centered"):
            raise PdsError("pass statistics.to_range(config.data.centered): the model does not say what its range is")
        statistics = statistics.to_range(model.centered)
    mean, power = (v if hasattr(v, "dtype") else np.asarray(v, np.float32) for v in statistics)
    height, width, channels = mean.shape
    if power.shape != (height, width // 2 + 1, channels):
        raise PdsError(f"statistics: the power of images {mean.shape} cannot have shape {power.shape}")
    return mean, power


def precision_effect(score_fn: ScoreFn, sde: SDE, shape: tuple[int, int, int]) -> float:
    """How much the current precision changes a score: max |s − s₃₂| / max |s₃₂| at low, middle and high noise.

    s₃₂ is the score in float32 throughout, products and activations. On devices without TF32, such as CPUs, tf32
    changes nothing.

    Args:
      score_fn: score function, a pytree.
      sde: forward SDE.
      shape: (H, W, C) of one image.

    Returns:
      The relative difference.
    """
    t = jnp.asarray([0.05, 0.5, 1.0], jnp.float32) * sde.T
    x = batch_mul(sde.std(t), jax.random.normal(jax.random.key(0), (3, *shape)))
    found = jax.jit(lambda f: f(x, t))(score_fn)
    score_fn = _in_float32(score_fn)
    with jax.default_matmul_precision("highest"):
        exact = jax.jit(lambda f: f(x, t))(score_fn)
    return float(jnp.max(jnp.abs(found - exact)) / jnp.max(jnp.abs(exact)))


def _in_float32(part: Any) -> Any:
    """A score function whose networks compute in float32, however deep in its fields they lie."""
    if hasattr(part, "clone") and hasattr(part, "apply"):
        return part.clone(dtype=jnp.float32) if getattr(part, "dtype", jnp.float32) != jnp.float32 else part
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        return part
    fields = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    changed = {name: new for name, value in fields.items() if (new := _in_float32(value)) is not value}
    return dataclasses.replace(part, **changed) if changed else part
