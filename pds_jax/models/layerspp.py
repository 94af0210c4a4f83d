"""Layers of NCSN++ and DDPM++."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pds_jax.models import up_or_down_sampling as resampling
from pds_jax.models.layers import (
    NIN,
    Activation,
    Block,
    Dtype,
    add_embedding,
    attention,
    conv1x1,
    conv3x3,
    default_init,
    group_count,
)
from pds_jax.types import Array, PdsError


def _pixel_mean(x: Array) -> Array:
    """Mean over H and W, (B, C): a matrix product, which CPUs compute 5 times faster than XLA's reduction."""
    b, h, w, c = x.shape
    ones = jnp.full((b, 1, h * w), 1 / (h * w), x.dtype)
    return jnp.matmul(ones, x.reshape(b, h * w, c), precision=jax.lax.Precision.HIGHEST)[:, 0]


class GroupNorm(nn.Module):
    """Group normalisation, γ (x − μ) / √(σ² + ε) + β, in float32 (leaves as flax's); groups=0 is min(C // 4, 32).

    Channels are averaged over pixels first, then over their group, so that no array but (B, C) is split into groups: a
    third less time than flax's form on a CPU. Deviations are squared about the mean, which loses nothing to rounding.
    """

    epsilon: float = 1e-6
    groups: int = 0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalise (B, H, W, C) float32."""
        c = x.shape[-1]
        groups = self.groups or group_count(c)
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))

        def group_mean(a: Array) -> Array:
            means = _pixel_mean(a).reshape(a.shape[0], groups, c // groups).mean(-1)
            return jnp.repeat(means, c // groups, axis=1)

        deviation = x - group_mean(x)[:, None, None, :]
        factor = jax.lax.rsqrt(group_mean(jnp.square(deviation)) + self.epsilon) * scale[None]
        return deviation * factor[:, None, None, :] + bias[None, None, None, :]


def group_norm(x: Array, dtype: Dtype) -> Array:
    """:class:`GroupNorm`, a submodule named ``GroupNorm_n``.

    Args:
      x: (B, H, W, C).
      dtype: dtype of the result; the normalisation itself is float32.

    Returns:
      (B, H, W, C).
    """
    return GroupNorm()(x.astype(jnp.float32)).astype(dtype)


def rescaled_sum(x: Array, y: Array, rescale: bool) -> Array:
    """x + y, divided by √2 if ``rescale`` so that the variance stays."""
    return (x + y) * float(np.sqrt(0.5)) if rescale else x + y


class GaussianFourierProjection(nn.Module):
    """Random Fourier features [sin(2π W x), cos(2π W x)] with a frozen W ~ N(0, scale²)."""

    embedding_size: int = 256
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Embed a noise level.

        Args:
          x: (B,) float32, log σ.

        Returns:
          (B, 2·embedding_size) float32.
        """
        w = self.param("W", nn.initializers.normal(stddev=self.scale), (self.embedding_size,))
        angles = x[:, None] * jax.lax.stop_gradient(w)[None] * float(2 * np.pi)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class Combine(nn.Module):
    """Merge the input pyramid into the features, after a 1x1 convolution: by sum or concatenation."""

    method: str = "cat"
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, y: Array) -> Array:
        """Combine.

        Args:
          x: (B, H, W, C) pyramid.
          y: (B, H, W, D) features.

        Returns:
          (B, H, W, D), or (B, H, W, 2D) for ``cat``.
        """
        h = conv1x1(y.shape[-1], dtype=self.dtype)(x)
        return h + y if self.method == "sum" else jnp.concatenate([h, y], axis=-1)


class AttnBlockpp(Block):
    """Residual self-attention over all pixels."""

    skip_rescale: bool = False
    init_scale: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def forward(self, x: Array, temb: Array | None = None, train: bool = False) -> Array:
        """Attend.

        Args:
          x: (B, H, W, C).
          temb: not used.
          train: changes nothing.

        Returns:
          (B, H, W, C).
        """
        c = x.shape[-1]
        h = group_norm(x, self.dtype)
        q, k, v = (NIN(c, dtype=self.dtype)(h) for _ in range(3))
        h = NIN(c, init_scale=self.init_scale, dtype=self.dtype)(attention(q, k, v))
        return rescaled_sum(x, h, self.skip_rescale)


class Conv2d(nn.Module):
    """Convolution joined to FIR up- or downsampling by 2 (leaves ``weight`` and ``bias``)."""

    fmaps: int
    kernel: int
    up: bool = False
    down: bool = False
    resample_kernel: tuple[float, ...] = (1, 3, 3, 1)
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Resample and convolve.

        Args:
          x: (B, H, W, C).

        Returns:
          (B, 2H, 2W, fmaps) if up, (B, H / 2, W / 2, fmaps) if down.

        Raises:
          PdsError: unless exactly one of up and down is set.
        """
        if self.up == self.down:
            raise PdsError("Conv2d needs exactly one of up and down; without resampling use flax.linen.Conv")
        shape = (self.kernel, self.kernel, x.shape[-1], self.fmaps)
        w = self.param("weight", default_init(), shape).astype(self.dtype)
        resample = resampling.upsample_conv_2d if self.up else resampling.conv_downsample_2d
        y = resample(x, w, k=self.resample_kernel)
        b = self.param("bias", nn.initializers.zeros, (self.fmaps,)).astype(self.dtype)
        return y + b.reshape(1, 1, 1, -1)


class Upsample(nn.Module):
    """Upsampling by 2: nearest neighbour or FIR, with or without a 3x3 convolution."""

    out_ch: int | None = None
    with_conv: bool = False
    fir: bool = False
    fir_kernel: tuple[float, ...] = (1, 3, 3, 1)
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Upsample.

        Args:
          x: (B, H, W, C).

        Returns:
          (B, 2H, 2W, out_ch or C); without the convolution the channels stay C.
        """
        out_ch = self.out_ch or x.shape[-1]
        if self.fir and self.with_conv:
            return Conv2d(out_ch, 3, up=True, resample_kernel=self.fir_kernel, dtype=self.dtype)(x)
        if self.fir:
            return resampling.upsample_2d(x, self.fir_kernel)
        h = resampling.naive_upsample_2d(x)
        return conv3x3(out_ch, dtype=self.dtype)(h) if self.with_conv else h


class Downsample(nn.Module):
    """Downsampling by 2: box average, strided convolution or FIR."""

    out_ch: int | None = None
    with_conv: bool = False
    fir: bool = False
    fir_kernel: tuple[float, ...] = (1, 3, 3, 1)
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Downsample.

        Args:
          x: (B, H, W, C).

        Returns:
          (B, H / 2, W / 2, out_ch or C); without the convolution the channels stay C.
        """
        out_ch = self.out_ch or x.shape[-1]
        if self.fir and self.with_conv:
            return Conv2d(out_ch, 3, down=True, resample_kernel=self.fir_kernel, dtype=self.dtype)(x)
        if self.fir:
            return resampling.downsample_2d(x, self.fir_kernel)
        if self.with_conv:
            return conv3x3(out_ch, stride=2, dtype=self.dtype)(x)
        return resampling.naive_downsample_2d(x)


def _resampler(up: bool, down: bool, fir: bool, fir_kernel: tuple[float, ...]) -> Callable[[Array], Array]:
    """The resampling inside a residual block; it has no parameters."""
    if up:
        return (lambda x: resampling.upsample_2d(x, fir_kernel)) if fir else resampling.naive_upsample_2d
    if down:
        return (lambda x: resampling.downsample_2d(x, fir_kernel)) if fir else resampling.naive_downsample_2d
    return lambda x: x


class ResnetBlockDDPMpp(Block):
    """DDPM's residual block with the option of a √½ rescaling."""

    act: Activation
    out_ch: int | None = None
    conv_shortcut: bool = False
    dropout: float = 0.1
    skip_rescale: bool = False
    init_scale: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def forward(self, x: Array, temb: Array | None = None, train: bool = False) -> Array:
        """Apply the block.

        Args:
          x: (B, H, W, C).
          temb: (B, D) embedding of the noise level.
          train: whether dropout is on.

        Returns:
          (B, H, W, out_ch).
        """
        out_ch = self.out_ch or x.shape[-1]
        h = conv3x3(out_ch, dtype=self.dtype)(self.act(group_norm(x, self.dtype)))
        h = add_embedding(h, temb, self.act, self.dtype)
        h = self.act(group_norm(h, self.dtype))
        h = nn.Dropout(self.dropout)(h, deterministic=not train)
        h = conv3x3(out_ch, init_scale=self.init_scale, dtype=self.dtype)(h)
        if x.shape[-1] != out_ch:
            if self.conv_shortcut:
                x = conv3x3(out_ch, dtype=self.dtype)(x)
            else:
                x = NIN(out_ch, dtype=self.dtype)(x)
        return rescaled_sum(x, h, self.skip_rescale)


class ResnetBlockBigGANpp(Block):
    """BigGAN's residual block, which can resample by 2 inside."""

    act: Activation
    up: bool = False
    down: bool = False
    out_ch: int | None = None
    dropout: float = 0.1
    fir: bool = False
    fir_kernel: tuple[float, ...] = (1, 3, 3, 1)
    skip_rescale: bool = True
    init_scale: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def forward(self, x: Array, temb: Array | None = None, train: bool = False) -> Array:
        """Apply the block.

        Args:
          x: (B, H, W, C).
          temb: (B, D) embedding of the noise level.
          train: whether dropout is on.

        Returns:
          (B, H', W', out_ch); H' = 2H if up, H / 2 if down.
        """
        out_ch = self.out_ch or x.shape[-1]
        resample = _resampler(self.up, self.down, self.fir, self.fir_kernel)
        h = resample(self.act(group_norm(x, self.dtype)))
        h = conv3x3(out_ch, dtype=self.dtype)(h)
        h = add_embedding(h, temb, self.act, self.dtype)
        h = self.act(group_norm(h, self.dtype))
        h = nn.Dropout(self.dropout)(h, deterministic=not train)
        h = conv3x3(out_ch, init_scale=self.init_scale, dtype=self.dtype)(h)
        shortcut = resample(x)
        if x.shape[-1] != out_ch or self.up or self.down:
            shortcut = conv1x1(out_ch, dtype=self.dtype)(shortcut)
        return rescaled_sum(shortcut, h, self.skip_rescale)
