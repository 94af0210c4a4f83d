"""Wide residual classifier of noisy images, for class-conditional sampling (Song et al. 2021, appendix I.1).

A Wide-ResNet (Zagoruyko and Komodakis 2016) with group normalisation and a Fourier embedding of the noise level.
Shortcuts have no parameters: where the width grows they are average-pooled and padded with zero channels.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from pds_jax.models.layers import Dtype, group_count
from pds_jax.models.layerspp import GaussianFourierProjection
from pds_jax.models.up_or_down_sampling import naive_downsample_2d
from pds_jax.models.utils import check_divisible
from pds_jax.types import Array, Key

EMBEDDING_SIZE = 128
_he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _head_init(key: Key, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
    """Uniform with bound 1/√(number of classes)."""
    bound = shape[1] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def _norm_relu(x: Array, name: str) -> Array:
    norm = nn.GroupNorm(num_groups=group_count(x.shape[-1]), epsilon=1e-5, name=name)
    return nn.relu(norm(x))


def _conv(features: int, name: str, stride: int = 1) -> nn.Conv:
    strides = (stride, stride)
    return nn.Conv(features, (3, 3), strides, padding="SAME", use_bias=False, kernel_init=_he_normal, name=name)


def _shortcut(x: Array, channels: int, stride: int) -> Array:
    """x average-pooled and padded with zero channels to the shape of the block's output."""
    if x.shape[-1] == channels:
        return x
    pooled = naive_downsample_2d(x, stride)
    return jnp.pad(pooled, [(0, 0), (0, 0), (0, 0), (0, channels - x.shape[-1])])


class WideResnetBlock(nn.Module):
    """Two 3x3 convolutions, the embedding of the noise level between them."""

    channels: int
    stride: int = 1
    activate_before_residual: bool = False

    @nn.compact
    def __call__(self, x: Array, temb: Array) -> Array:
        """Apply the block.

        Args:
          x: (B, H, W, C).
          temb: (B, D).

        Returns:
          (B, H / stride, W / stride, channels).
        """
        h = _norm_relu(x, "init_bn")
        residual = h if self.activate_before_residual else x
        h = _conv(self.channels, "conv1", self.stride)(h)
        h = h + nn.Dense(self.channels)(nn.swish(temb))[:, None, None, :]
        h = _conv(self.channels, "conv2")(_norm_relu(h, "bn_2"))
        return h + _shortcut(residual, self.channels, self.stride)


class WideResnetGroup(nn.Module):
    """Blocks of one width."""

    blocks_per_group: int
    channels: int
    stride: int = 1
    activate_before_residual: bool = False

    @nn.compact
    def __call__(self, x: Array, temb: Array) -> Array:
        """Apply the blocks; the first one resamples.

        Args:
          x: (B, H, W, C).
          temb: (B, D).

        Returns:
          (B, H / stride, W / stride, channels).
        """
        for i in range(self.blocks_per_group):
            first = i == 0
            block = WideResnetBlock(self.channels, self.stride if first else 1, self.activate_before_residual and first)
            x = block(x, temb)
        return x


class WideResnet(nn.Module):
    """Classifier p(y | x(t), σ); score_sde's has 4 blocks per group, channel multiplier 10 and 10 outputs."""

    blocks_per_group: int
    channel_multiplier: int
    num_outputs: int

    @nn.compact
    def __call__(self, x: Array, sigmas: Array, train: bool = True) -> Array:
        """Classify.

        Args:
          x: (B, H, W, C) noisy images; every image is standardised first.
          sigmas: (B,) noise levels σ > 0.
          train: ignored, no layer depends on it; accepted so that all networks are called alike.

        Returns:
          (B, num_outputs) logits.

        Raises:
          PdsError: if H or W is not a multiple of 4.
        """
        check_divisible(x.shape[1:3], 3)
        x = x - x.mean(axis=(1, 2, 3), keepdims=True)
        floor = (x.shape[1] * x.shape[2] * x.shape[3]) ** -0.5
        x = x / jnp.maximum(x.std(axis=(1, 2, 3), keepdims=True), floor)

        temb = GaussianFourierProjection(EMBEDDING_SIZE, scale=16.0)(jnp.log(sigmas))
        temb = nn.Dense(4 * EMBEDDING_SIZE)(temb)
        temb = nn.Dense(4 * EMBEDDING_SIZE)(nn.swish(temb))

        h = _conv(16, "init_conv")(x)
        for i, (width, stride) in enumerate([(16, 1), (32, 2), (64, 2)]):
            channels = width * self.channel_multiplier
            h = WideResnetGroup(self.blocks_per_group, channels, stride, activate_before_residual=i == 0)(h, temb)
        h = _norm_relu(h, "pre-pool-bn").mean(axis=(1, 2))
        return nn.Dense(self.num_outputs, kernel_init=_head_init)(h)
