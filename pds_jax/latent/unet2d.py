"""diffusers' ``UNet2DConditionModel`` (Stable Diffusion 1.x and 2.x) and ``UNet2DModel`` (unconditional latents).

Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022; the layout of the
parameters and the meaning of ``config.json`` are diffusers'.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from pds_jax.latent.blocks import (
    ATTENTION_BYTES,
    Downsample,
    Dtype,
    ResnetBlock,
    SpatialAttention,
    TimeEmbedding,
    Transformer2D,
    Upsample,
    conv3,
    group_norm,
    timestep_embedding,
)
from pds_jax.types import Array, PdsError

PIXELS, CONTEXT = "pixels", "context"


@dataclasses.dataclass(frozen=True)
class UNetSizes:
    """What decides the parameters of a U-Net and what it computes.

    Attributes:
      in_channels: of the latents.
      out_channels: of the output.
      widths: channels of each resolution, the finest first.
      down: for each resolution downwards what its pixels attend to: None, "pixels" or "context" (both).
      up: for each resolution upwards, the coarsest first, the same.
      mid: of the middle block, the same; "none" for a network without a middle block.
      layers: residual blocks of each resolution.
      heads: of the attention of each resolution.
      depth: transformer blocks of each resolution.
      linear: whether a transformer's projections are matrices (SD 2.x) or 1x1 convolutions (SD 1.x).
      groups: of the normalisation.
      attention_groups: of the normalisation before the middle's attention.
      eps: of the normalisation.
      flip: cosines before sines in the time embedding.
      shift: ``freq_shift`` of the time embedding.
      time_width: of the time embedding.
      context_width: D of the context, or None.
      padding: of the downsampling convolutions, 1, or 0 for padding after the axis only.
      scale_shift: whether the time embedding scales and shifts.
      mid_scale: divides the sums of the middle block.
      center: whether the input is mapped from [0, 1] to [-1, 1] first.
    """

    in_channels: int
    out_channels: int
    widths: tuple[int, ...]
    down: tuple[str | None, ...]
    up: tuple[str | None, ...]
    mid: str | None
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    depth: tuple[int, ...]
    linear: bool
    groups: int
    attention_groups: int
    eps: float
    flip: bool
    shift: float
    time_width: int
    context_width: int | None
    padding: int
    scale_shift: bool = False
    mid_scale: float = 1.0
    center: bool = False


class UNet2D(nn.Module):
    """The U-Net of latent diffusion.

    Attributes:
      sizes: its layout.
      limit: bytes of attention logits at once.
      dtype: of the computation.
    """

    sizes: UNetSizes
    limit: int = ATTENTION_BYTES
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, timesteps: Array, context: Array | None = None) -> Array:
        """The network's output, float32 (B, H, W, out_channels).

        Args:
          x: (B, H, W, in_channels) float32, noisy latents.
          timesteps: (B,) float32, the noise level's place among those of training.
          context: (B, S, D) of the text encoder, where the network attends to one.
        """
        sizes = self.sizes
        emb = timestep_embedding(timesteps, sizes.widths[0], sizes.flip, sizes.shift).astype(self.dtype)
        emb = TimeEmbedding(sizes.time_width, self.dtype, name="time_embedding")(emb)
        context = None if context is None else context.astype(self.dtype)
        x = (2 * x - 1 if sizes.center else x).astype(self.dtype)
        h = conv3(sizes.widths[0], self.dtype, "conv_in")(x)
        skips, last = [h], len(sizes.widths) - 1
        for i in range(last + 1):
            h, kept = DownBlock(sizes, i, self.limit, self.dtype, name=f"down_blocks.{i}")(h, emb, context)
            skips += kept
        if sizes.mid != "none":
            h = MidBlock(sizes, self.limit, self.dtype, name="mid_block")(h, emb, context)
        for i in range(last + 1):
            count = sizes.layers[last - i] + 1
            taken, skips = skips[-count:], skips[:-count]
            size = (skips[-1].shape[1], skips[-1].shape[2]) if skips else None
            block = UpBlock(sizes, i, self.limit, self.dtype, name=f"up_blocks.{i}")
            h = block(h, emb, context, taken, size)
        h = nn.silu(group_norm(h, sizes.groups, sizes.eps, "conv_norm_out"))
        return conv3(sizes.out_channels, self.dtype, "conv_out")(h).astype(jnp.float32)


class _Block(nn.Module):
    """What the three kinds of blocks share."""

    sizes: UNetSizes

    def resnet(self, width: int, name: str, scale: float = 1.0) -> ResnetBlock:
        sizes = self.sizes
        return ResnetBlock(width, sizes.groups, sizes.eps, self.dtype, sizes.scale_shift, scale, name=name)

    def attention(self, kind: str, level: int, name: str, groups: int, scale: float = 1.0) -> nn.Module:
        sizes = self.sizes
        if kind == CONTEXT:
            heads, depth = sizes.heads[level], sizes.depth[level]
            return Transformer2D(heads, depth, sizes.linear, sizes.groups, self.limit, self.dtype, name=name)
        return SpatialAttention(sizes.heads[level], groups, sizes.eps, self.limit, self.dtype, scale, name=name)


class DownBlock(_Block):
    """Residual blocks of one resolution, each followed by attention, then half the resolution unless it is the last."""

    level: int
    limit: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array, emb: Array, context: Array | None) -> tuple[Array, list[Array]]:
        """The output, and every intermediate that the way up takes."""
        sizes, kept = self.sizes, []
        kind = sizes.down[self.level]
        for i in range(sizes.layers[self.level]):
            x = self.resnet(sizes.widths[self.level], f"resnets.{i}")(x, emb)
            if kind is not None:
                x = _attended(self.attention(kind, self.level, f"attentions.{i}", sizes.groups), x, context)
            kept.append(x)
        if self.level < len(sizes.widths) - 1:
            x = Downsample(sizes.padding, self.dtype, name="downsamplers.0")(x)
            kept.append(x)
        return x, kept


class MidBlock(_Block):
    """Residual block, attention, residual block at the coarsest resolution."""

    limit: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array, emb: Array, context: Array | None) -> Array:
        """(B, H, W, C) from the same."""
        sizes = self.sizes
        width, scale = sizes.widths[-1], sizes.mid_scale
        x = self.resnet(width, "resnets.0", scale)(x, emb)
        if sizes.mid is not None:
            attention = self.attention(sizes.mid, len(sizes.widths) - 1, "attentions.0", sizes.attention_groups, scale)
            x = _attended(attention, x, context)
        return self.resnet(width, "resnets.1", scale)(x, emb)


class UpBlock(_Block):
    """Residual blocks over the input beside what was kept on the way down, then twice the resolution."""

    index: int
    limit: int
    dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Array, emb: Array, context: Array | None, kept: list[Array], size: tuple[int, int] | None
    ) -> Array:
        """(B, H, W, C) from x, intermediates of the way down (the last first), and the next resolution or None."""
        sizes = self.sizes
        level, kind = len(sizes.widths) - 1 - self.index, sizes.up[self.index]
        for i, skip in enumerate(reversed(kept)):
            x = self.resnet(sizes.widths[level], f"resnets.{i}")(jnp.concatenate([x, skip], axis=-1), emb)
            if kind is not None:
                x = _attended(self.attention(kind, level, f"attentions.{i}", sizes.groups), x, context)
        return x if size is None else Upsample(self.dtype, name="upsamplers.0")(x, size)


def _attended(attention: nn.Module, x: Array, context: Array | None) -> Array:
    if not isinstance(attention, Transformer2D):
        return attention(x)
    if context is None:
        raise PdsError("this network attends to a text encoder's states: give a prompt, or context=")
    return attention(x, context)
