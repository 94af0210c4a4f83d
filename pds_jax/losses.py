"""Training objectives: denoising score matching at continuous times and at discrete levels.

All losses are pure functions of (params, batch, times, noise); the ``get_*`` functions add the drawing of times
and noise from a key. A loss knows score functions only through ``score_fn.get_score_fn``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pds_jax import score_fn as score_fns
from pds_jax.ops import batch_mul
from pds_jax.types import Array, Key, PdsError

Params = Any
LossFn = Callable[[Key, Params, Array], Array]


def _draw(keys: Key, draw: Callable[[Key], Array]) -> Array:
    """One draw an image from its own key, so that the split over devices does not matter."""
    return jax.vmap(draw)(keys)


def _split(keys: Key, shape: tuple[int, ...]) -> tuple[Key, Array, Key]:
    """Per-image keys for times, per-image noise, and one key for dropout."""
    three = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
    noise = _draw(three[:, 1], lambda key: jax.random.normal(key, shape))
    return three[:, 0], noise, three[0, 2]


def _model_fn(model: Any, params: Params, train: bool, dropout_key: Key) -> Callable[[Array, Array], Array]:
    return lambda x, labels: model.apply({"params": params}, x, labels, train=train, rngs={"dropout": dropout_key})


def unit_weight(sde: Any, output_scale: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Weight that makes the loss of a scaled parametrisation a regression at unit scale.

    λ = std⁴ / (m² c²) with c(σ̄) the scale of the network's output in D, so that λ ‖s + z/std‖² = ‖D − x_0‖² / c²
    (derived here for "wiener", where c = τ; Karras et al. 2022, equation 8 for "edm", where c = c_out). The σ²
    weighting would give the highest noise levels almost no weight.

    Args:
      sde: forward SDE.
      output_scale: c of σ̄ = std/m, (B,) -> (B,).

    Returns:
      λ(t), (B,) -> (B,).
    """

    def weight(t: Array) -> Array:
        scale, std = sde.mean_scale(t), sde.std(t)
        return jnp.square(jnp.square(std) / (scale * output_scale(std / scale)))

    return weight


def reduce_pixels(squares: Array, reduce_mean: bool) -> Array:
    """Sum up each sample's squares: their mean, or half their sum, as in score_sde.

    Args:
      squares: (B, H, W, C).
      reduce_mean: mean over pixels instead of ½ Σ.

    Returns:
      (B,).
    """
    flat = squares.reshape(squares.shape[0], -1)
    return jnp.mean(flat, axis=-1) if reduce_mean else 0.5 * jnp.sum(flat, axis=-1)


def perturb(sde: Any, batch: Array, t: Array, z: Array) -> tuple[Array, Array]:
    """Diffuse images to time t: x_t = mean(x_0, t) + std(t) z.

    Args:
      sde: forward SDE.
      batch: (B, H, W, C) images x_0 in the network's range.
      t: (B,) times.
      z: (B, H, W, C) standard normal noise.

    Returns:
      x_t (B, H, W, C) and std (B,).
    """
    mean, std = sde.marginal_prob(batch, t)
    return mean + batch_mul(std, z), std


def sde_loss(
    sde: Any,
    score_fn: Callable[[Array, Array], Array],
    batch: Array,
    t: Array,
    z: Array,
    *,
    reduce_mean: bool,
    likelihood_weighting: bool,
    weight: Callable[[Array], Array] | None = None,
) -> Array:
    """Denoising score matching at given times and noise.

    L = E[λ(t) ‖s(x_t, t) + z / std‖²] with λ = std² (each noise level counts the same), λ = g² with likelihood
    weighting, or λ = ``weight(t)``. Source: Song et al. 2021, equation 7; Song, Durkan et al. 2021 for g².

    Args:
      sde: forward SDE.
      score_fn: (x, t) -> (B, H, W, C).
      batch: (B, H, W, C) images in the network's range.
      t: (B,) times.
      z: (B, H, W, C) standard normal noise.
      reduce_mean: mean over pixels instead of ½ Σ.
      likelihood_weighting: λ = g(t)².
      weight: another λ(t), (B,) -> (B,); not together with likelihood weighting.

    Returns:
      The loss, a scalar.

    Raises:
      PdsError: two weightings at once.
    """
    if likelihood_weighting and weight is not None:
        raise PdsError("choose either training.likelihood_weighting or training.loss_weighting, not both")
    x, std = perturb(sde, batch, t, z)
    score = score_fn(x, t)
    if likelihood_weighting:
        _, g = sde.sde(jnp.zeros_like(batch), t)
        losses = reduce_pixels(jnp.square(score + batch_mul(1.0 / std, z)), reduce_mean) * jnp.square(g)
        return jnp.mean(losses)
    residual = batch_mul(std, score) + z
    if weight is not None:
        residual = batch_mul(jnp.sqrt(weight(t)) / std, residual)
    return jnp.mean(reduce_pixels(jnp.square(residual), reduce_mean))


def get_sde_loss_fn(
    sde: Any,
    model: Any,
    *,
    train: bool,
    reduce_mean: bool = True,
    continuous: bool = True,
    likelihood_weighting: bool = True,
    eps: float = 1e-5,
    weight: Callable[[Array], Array] | None = None,
    **score_options: Any,
) -> LossFn:
    """Denoising score matching at times uniform in [eps, T].

    Args:
      sde: forward SDE.
      model: network.
      train: dropout on.
      reduce_mean: mean over pixels instead of ½ Σ.
      continuous: the network is conditioned on continuous time.
      likelihood_weighting: see :func:`sde_loss`.
      eps: smallest time.
      weight: see :func:`sde_loss`.
      **score_options: handed to ``score_fn.get_score_fn``.

    Returns:
      loss_fn(keys (B,), params, batch) -> scalar; one key an image.
    """

    def loss_fn(keys: Key, params: Params, batch: Array) -> Array:
        time_keys, z, dropout_key = _split(keys, batch.shape[1:])
        t = _draw(time_keys, lambda key: jax.random.uniform(key, minval=eps, maxval=sde.T))
        score_fn = score_fns.get_score_fn(
            sde, model, params, continuous=continuous, train=train, rngs={"dropout": dropout_key}, **score_options
        )
        return sde_loss(
            sde,
            score_fn,
            batch,
            t,
            z,
            reduce_mean=reduce_mean,
            likelihood_weighting=likelihood_weighting,
            weight=weight,
        )

    return loss_fn


def smld_loss(
    vesde: Any,
    model_fn: Callable[[Array, Array], Array],
    batch: Array,
    labels: Array,
    z: Array,
    *,
    reduce_mean: bool,
) -> Array:
    """Loss of NCSN, λ = σ²: E[‖σ s(x + σ z, label) + z‖²]. Source: Song and Ermon 2019, equation 6.

    Args:
      vesde: VESDE.
      model_fn: (x, labels) -> score (B, H, W, C).
      batch: (B, H, W, C) images in the network's range.
      labels: (B,) int32, which level; 0 is the noisiest.
      z: (B, H, W, C) standard normal noise.
      reduce_mean: mean over pixels instead of ½ Σ.

    Returns:
      The loss, a scalar.
    """
    sigma = jnp.asarray(vesde.discrete_sigmas)[vesde.N - 1 - labels]
    score = model_fn(batch + batch_mul(sigma, z), labels)
    return jnp.mean(reduce_pixels(jnp.square(batch_mul(sigma, score) + z), reduce_mean))


def ddpm_loss(
    sde: Any,
    model_fn: Callable[[Array, Array], Array],
    batch: Array,
    labels: Array,
    z: Array,
    *,
    reduce_mean: bool,
) -> Array:
    """Simple loss of DDPM: E[‖ε(√ᾱ x + √(1−ᾱ) z, label) − z‖²]. Source: Ho et al. 2020, equation 14.

    Args:
      sde: VPSDE.
      model_fn: (x, labels) -> predicted noise (B, H, W, C).
      batch: (B, H, W, C) images in the network's range.
      labels: (B,) int32 step.
      z: (B, H, W, C) standard normal noise.
      reduce_mean: mean over pixels instead of ½ Σ.

    Returns:
      The loss, a scalar.
    """
    signal, noise = (jnp.asarray(t)[labels] for t in (sde.sqrt_alphas_cumprod, sde.sqrt_1m_alphas_cumprod))
    x = batch_mul(signal, batch) + batch_mul(noise, z)
    return jnp.mean(reduce_pixels(jnp.square(model_fn(x, labels) - z), reduce_mean))


def get_smld_loss_fn(vesde: Any, model: Any, *, train: bool, reduce_mean: bool = False) -> LossFn:
    """Loss of NCSN, :func:`smld_loss`, at levels drawn uniformly from the N of the SDE.

    Args:
      vesde: VESDE.
      model: network, conditioned on labels.
      train: dropout on.
      reduce_mean: mean over pixels instead of ½ Σ.

    Returns:
      loss_fn(keys (B,), params, batch (B, H, W, C)) -> scalar; one key an image.

    Raises:
      PdsError: another SDE than VE.

    Source: Song and Ermon, NeurIPS 2019, equation 6.
    """
    if not hasattr(vesde, "discrete_sigmas"):
        raise PdsError(f"SMLD training needs the VE SDE, not {type(vesde).__name__}")

    def loss_fn(keys: Key, params: Params, batch: Array) -> Array:
        label_keys, z, dropout_key = _split(keys, batch.shape[1:])
        labels = _draw(label_keys, lambda key: jax.random.randint(key, (), 0, vesde.N))
        model_fn = _model_fn(model, params, train, dropout_key)
        return smld_loss(vesde, model_fn, batch, labels, z, reduce_mean=reduce_mean)

    return loss_fn


def get_ddpm_loss_fn(vpsde: Any, model: Any, *, train: bool, reduce_mean: bool = True) -> LossFn:
    """Loss of DDPM, :func:`ddpm_loss`, at steps drawn uniformly from the N of the SDE.

    Args:
      vpsde: VPSDE.
      model: network, conditioned on labels.
      train: dropout on.
      reduce_mean: mean over pixels instead of ½ Σ.

    Returns:
      loss_fn(keys (B,), params, batch (B, H, W, C)) -> scalar; one key an image.

    Raises:
      PdsError: another SDE than VP.

    Source: Ho et al., NeurIPS 2020, equation 14.
    """
    if not hasattr(vpsde, "sqrt_alphas_cumprod"):
        raise PdsError(f"DDPM training needs the VP SDE, not {type(vpsde).__name__}")

    def loss_fn(keys: Key, params: Params, batch: Array) -> Array:
        label_keys, z, dropout_key = _split(keys, batch.shape[1:])
        labels = _draw(label_keys, lambda key: jax.random.randint(key, (), 0, vpsde.N))
        model_fn = _model_fn(model, params, train, dropout_key)
        return ddpm_loss(vpsde, model_fn, batch, labels, z, reduce_mean=reduce_mean)

    return loss_fn
