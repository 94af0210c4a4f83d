"""diffusers' ``AutoencoderKL`` and ``VQModel``: images (B, 8h, 8w, 3) in [-1, 1] to latents and back.

Sources: Rombach et al., CVPR 2022; van den Oord et al., "Neural Discrete Representation Learning", 2017 (VQ).
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from pds_jax.latent.blocks import (
    ATTENTION_BYTES,
    Conv,
    Downsample,
    Dtype,
    Embed,
    ResnetBlock,
    SpatialAttention,
    Upsample,
    conv3,
    group_norm,
)
from pds_jax.types import Array

_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class AutoencoderSizes:
    """What decides the parameters of an autoencoder and what it computes.

    Attributes:
      image_channels: of the images.
      latent_channels: of the encoder's output (half of it in KL) and the decoder's input.
      code_channels: of the latents that a diffusion model works on.
      codes: number of code vectors (VQ), or None for KL.
      widths: channels of each resolution, the finest first.
      down: whether each resolution of the encoder has attention.
      up: whether each resolution of the decoder has attention, the coarsest first.
      mid_attention: whether the middle has attention.
      layers: residual blocks of each resolution.
      groups: of the normalisation.
      quant_conv: whether a 1x1 convolution follows the encoder.
      post_quant_conv: whether a 1x1 convolution precedes the decoder.
      scale: latents of the diffusion model = (latents − offset) · scale.
      offset: see scale.
    """

    image_channels: int
    latent_channels: int
    code_channels: int
    codes: int | None
    widths: tuple[int, ...]
    down: tuple[bool, ...]
    up: tuple[bool, ...]
    mid_attention: bool
    layers: int
    groups: int
    quant_conv: bool
    post_quant_conv: bool
    scale: float
    offset: float = 0.0

    @property
    def factor(self) -> int:
        """Pixels of an image to one of a latent, along each axis."""
        return 2 ** (len(self.widths) - 1)


class Autoencoder(nn.Module):
    """Encoder and decoder; the latents are those that the diffusion model sees.

    Attributes:
      sizes: its layout.
      limit: bytes of attention logits at once.
      dtype: of the computation.
    """

    sizes: AutoencoderSizes
    limit: int = ATTENTION_BYTES
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Name the parts."""
        sizes = self.sizes
        double = 1 if sizes.codes is not None else 2
        self.encoder = Encoder(sizes, double * sizes.latent_channels, self.limit, self.dtype)
        self.decoder = Decoder(sizes, self.limit, self.dtype)
        if sizes.quant_conv:
            self.quant_conv = Conv(double * sizes.code_channels, (1, 1), dtype=self.dtype)
        if sizes.post_quant_conv:
            self.post_quant_conv = Conv(sizes.latent_channels, (1, 1), dtype=self.dtype)
        if sizes.codes is not None:
            self.quantize = Quantizer(sizes.codes, sizes.code_channels)

    def encode(self, images: Array, noise: Array | None = None) -> Array:
        """Latents of images, float32 (B, h, w, code_channels).

        KL: mean + std·noise of q(z | image), the mean without noise. VQ: the encoder's output, not quantised.

        Args:
          images: (B, H, W, image_channels) in [-1, 1].
          noise: standard normal, shaped as the latents, or None.
        """
        h = self.encoder(images.astype(self.dtype))
        h = (self.quant_conv(h) if self.sizes.quant_conv else h).astype(jnp.float32)
        if self.sizes.codes is None:
            h, log_variance = jnp.split(h, 2, axis=-1)
            if noise is not None:
                h = h + jnp.exp(0.5 * jnp.clip(log_variance, -30.0, 20.0)) * noise
        return (h - self.sizes.offset) * self.sizes.scale

    def decode(self, latents: Array) -> Array:
        """Images, float32 (B, H, W, image_channels), about in [-1, 1]; VQ takes the nearest code vectors first."""
        z = latents / self.sizes.scale + self.sizes.offset
        if self.sizes.codes is not None:
            z = self.quantize(z)
        z = z.astype(self.dtype)
        return self.decoder(self.post_quant_conv(z) if self.sizes.post_quant_conv else z).astype(jnp.float32)

    def __call__(self, images: Array) -> Array:
        """decode(encode(images)); makes every parameter."""
        return self.decode(self.encode(images))


class Quantizer(nn.Module):
    """The nearest of a table of vectors, by Euclidean distance."""

    count: int
    width: int

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """(B, h, w, width) from the same, float32."""
        table = Embed(self.count, self.width, name="embedding").embedding
        flat = z.reshape(-1, self.width)
        distance = jnp.sum(table**2, axis=1)[None] - 2 * flat @ table.T
        return table[jnp.argmin(distance, axis=1)].reshape(z.shape)


class Encoder(nn.Module):
    """Images to the parameters of the latents' law."""

    sizes: AutoencoderSizes
    features: int
    limit: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, h, w, features) from (B, H, W, image_channels)."""
        sizes, last = self.sizes, len(self.sizes.widths) - 1
        h = conv3(sizes.widths[0], self.dtype, "conv_in")(x)
        for i, width in enumerate(sizes.widths):
            kind, name = "down" if i < last else None, f"down_blocks.{i}"
            h = Stage(width, sizes.layers, sizes.down[i], sizes.groups, self.limit, self.dtype, kind, name=name)(h)
        h = Middle(sizes.mid_attention, sizes.groups, self.limit, self.dtype, name="mid_block")(h)
        h = nn.silu(group_norm(h, sizes.groups, _EPS, "conv_norm_out"))
        return conv3(self.features, self.dtype, "conv_out")(h)


class Decoder(nn.Module):
    """Latents to images."""

    sizes: AutoencoderSizes
    limit: int
    dtype: Dtype

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """(B, H, W, image_channels) from (B, h, w, latent_channels)."""
        sizes, last = self.sizes, len(self.sizes.widths) - 1
        h = conv3(sizes.widths[-1], self.dtype, "conv_in")(z)
        h = Middle(sizes.mid_attention, sizes.groups, self.limit, self.dtype, name="mid_block")(h)
        for i, width in enumerate(reversed(sizes.widths)):
            kind, name = "up" if i < last else None, f"up_blocks.{i}"
            h = Stage(width, sizes.layers + 1, sizes.up[i], sizes.groups, self.limit, self.dtype, kind, name=name)(h)
        h = nn.silu(group_norm(h, sizes.groups, _EPS, "conv_norm_out"))
        return conv3(sizes.image_channels, self.dtype, "conv_out")(h)


class Stage(nn.Module):
    """Residual blocks of one resolution, each followed by attention if asked for, then another resolution."""

    width: int
    layers: int
    attention: bool
    groups: int
    limit: int
    dtype: Dtype
    resample: str | None

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """(B, H', W', width) from (B, H, W, C)."""
        for i in range(self.layers):
            h = ResnetBlock(self.width, self.groups, _EPS, self.dtype, name=f"resnets.{i}")(h)
            if self.attention:
                h = _one_head(self.groups, self.limit, self.dtype, f"attentions.{i}")(h)
        if self.resample == "down":
            return Downsample(0, self.dtype, name="downsamplers.0")(h)
        return Upsample(self.dtype, name="upsamplers.0")(h) if self.resample == "up" else h


class Middle(nn.Module):
    """Residual block, attention, residual block."""

    attention: bool
    groups: int
    limit: int
    dtype: Dtype

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """(B, H, W, C) from the same."""
        h = ResnetBlock(h.shape[-1], self.groups, _EPS, self.dtype, name="resnets.0")(h)
        if self.attention:
            h = _one_head(self.groups, self.limit, self.dtype, "attentions.0")(h)
        return ResnetBlock(h.shape[-1], self.groups, _EPS, self.dtype, name="resnets.1")(h)


def _one_head(groups: int, limit: int, dtype: Dtype, name: str) -> SpatialAttention:
    return SpatialAttention(1, groups, _EPS, limit, dtype, name=name)
