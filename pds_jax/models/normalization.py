"""Normalisations: group, instance, instance++ (with and without labels), variance; chosen by score_sde's names.

Means and variances are over the pixels of a channel, var biased; they are float32 whatever the compute dtype.
"""

from __future__ import annotations

from typing import Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from pds_jax.models.layers import Dtype
from pds_jax.types import Array, Key, PdsError, unknown_name

EPSILON = 1e-5


class Normalize(Protocol):
    """A normalisation: makes its submodule in the calling module and applies it."""

    def __call__(self, x: Array, y: Array | None = None) -> Array:
        """Normalise x (B, H, W, C), given labels y (B,) if the normalisation is conditional."""
        ...


def _near_one(key: Key, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
    """N(1, 0.02²)."""
    return 1 + 0.02 * jax.random.normal(key, shape, dtype)


def _instance(x: Array) -> Array:
    """(x - mean) / √(var + ε)."""
    mean = x.mean(axis=(1, 2), keepdims=True)
    return (x - mean) * jax.lax.rsqrt(x.var(axis=(1, 2), keepdims=True) + EPSILON)


def _channel_means(x: Array) -> Array:
    """(B, 1, 1, C) means of the channels, themselves normalised over the channels."""
    means = x.mean(axis=(1, 2), keepdims=True)
    centred = means - means.mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(means.var(axis=-1, keepdims=True) + EPSILON)


class InstanceNorm2d(nn.Module):
    """Instance normalisation, γ (x - mean) / √(var + ε) + β (leaves ``scale``, ``bias``)."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalise.

        Args:
          x: (B, H, W, C).

        Returns:
          (B, H, W, C).
        """
        shape = (1, 1, 1, x.shape[-1])
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        return (_instance(x.astype(jnp.float32)) * scale + bias).astype(self.dtype)


class InstanceNorm2dPlus(nn.Module):
    """Instance normalisation++ (Song and Ermon 2019, appendix A.1): γ (x̂ + α m̂) + β.

    x̂ is the instance-normalised image and m̂ the normalised channel means, which plain instance normalisation loses.
    """

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalise.

        Args:
          x: (B, H, W, C).

        Returns:
          (B, H, W, C).
        """
        shape = (1, 1, 1, x.shape[-1])
        alpha = self.param("alpha", _near_one, shape)
        gamma = self.param("gamma", _near_one, shape)
        beta = self.param("beta", nn.initializers.zeros, shape)
        x = x.astype(jnp.float32)
        return ((_instance(x) + _channel_means(x) * alpha) * gamma + beta).astype(self.dtype)


class ConditionalInstanceNorm2dPlus(nn.Module):
    """Instance normalisation++ whose γ, α, β are looked up by a label."""

    num_classes: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, y: Array) -> Array:
        """Normalise.

        Args:
          x: (B, H, W, C).
          y: (B,) int32 labels below num_classes.

        Returns:
          (B, H, W, C).
        """
        c = x.shape[-1]
        table = nn.Embed(self.num_classes, 3 * c, embedding_init=_init_table)(y)
        gamma, alpha, beta = jnp.split(table[:, None, None, :], 3, axis=-1)
        x = x.astype(jnp.float32)
        return ((_instance(x) + _channel_means(x) * alpha) * gamma + beta).astype(self.dtype)


def _init_table(key: Key, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
    """γ, α ~ N(1, 0.02²), β = 0."""
    num_classes, width = shape
    ones = _near_one(key, (num_classes, 2 * (width // 3)), dtype)
    return jnp.concatenate([ones, jnp.zeros((num_classes, width // 3), dtype)], axis=-1)


class VarianceNorm2d(nn.Module):
    """Division by the standard deviation of a channel only, γ x / √(var + ε) (leaf ``scale``)."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalise.

        Args:
          x: (B, H, W, C).

        Returns:
          (B, H, W, C).
        """
        scale = self.param("scale", _near_one, (1, 1, 1, x.shape[-1]))
        x = x.astype(jnp.float32)
        variance = x.var(axis=(1, 2), keepdims=True)
        return (x * jax.lax.rsqrt(variance + EPSILON) * scale).astype(self.dtype)


UNCONDITIONAL: dict[str, type[nn.Module]] = {
    "InstanceNorm": InstanceNorm2d,
    "InstanceNorm++": InstanceNorm2dPlus,
    "VarianceNorm": VarianceNorm2d,
}


def get_normalization(name: str, dtype: Dtype = jnp.float32, num_classes: int | None = None) -> Normalize:
    """Normalisation by its name in score_sde's configs, ``model.normalization``.

    Args:
      name: ``GroupNorm`` (32 groups), ``InstanceNorm``, ``InstanceNorm++`` or ``VarianceNorm``.
      dtype: dtype of the result.
      num_classes: for the conditional normalisation, which only ``InstanceNorm++`` has.

    Returns:
      A function (x, y=None) to call inside a compact module.

    Raises:
      PdsError: for an unknown name, or one without a conditional form.
    """
    if num_classes is not None:
        if name != "InstanceNorm++":
            raise PdsError(f"model.normalization={name!r} has no conditional form; known: InstanceNorm++")
        return lambda x, y=None: ConditionalInstanceNorm2dPlus(num_classes, dtype)(x, y)
    if name == "GroupNorm":
        return lambda x, y=None: _group_norm_32(x, dtype)
    if name not in UNCONDITIONAL:
        raise PdsError(unknown_name("model.normalization", name, sorted([*UNCONDITIONAL, "GroupNorm"])))
    return lambda x, y=None: UNCONDITIONAL[name](dtype=dtype)(x)


def _group_norm_32(x: Array, dtype: Dtype) -> Array:
    if x.shape[-1] % 32:
        raise PdsError(
            f"model.normalization='GroupNorm' has 32 groups, but a layer has {x.shape[-1]} channels; "
            "choose model.nf and model.ch_mult so that every width is a multiple of 32"
        )
    return nn.GroupNorm(num_groups=32, epsilon=1e-6)(x.astype(jnp.float32)).astype(dtype)
