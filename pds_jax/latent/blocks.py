"""Layers that the latent networks share. A submodule bears the name that diffusers gives it, dots included.

Inference only: every initialiser is zeros, and parameters always come from a file (``params.py``). Normalisation and
softmax are computed in float32 whatever the dtype.
"""

from __future__ import annotations

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from pds_jax.types import Array

Dtype = jax.typing.DTypeLike
ATTENTION_BYTES = 128 << 20

Dense = functools.partial(nn.Dense, kernel_init=nn.initializers.zeros)
Conv = functools.partial(nn.Conv, kernel_init=nn.initializers.zeros)
Embed = functools.partial(nn.Embed, embedding_init=nn.initializers.zeros)


def group_norm(x: Array, groups: int, eps: float, name: str) -> Array:
    """Group normalisation in float32, by the two-pass variance that loses no digits where the mean is large."""
    norm = nn.GroupNorm(groups, epsilon=eps, use_fast_variance=False, dtype=jnp.float32, name=name)
    return norm(x.astype(jnp.float32)).astype(x.dtype)


def layer_norm(x: Array, eps: float, name: str) -> Array:
    """Normalisation of each token in float32."""
    norm = nn.LayerNorm(epsilon=eps, use_fast_variance=False, dtype=jnp.float32, name=name)
    return norm(x.astype(jnp.float32)).astype(x.dtype)


def conv3(features: int, dtype: Dtype, name: str, stride: int = 1, padding: tuple[int, int] = (1, 1)) -> nn.Conv:
    """3x3 convolution with `padding` before and after each spatial axis."""
    return Conv(features, (3, 3), strides=stride, padding=(padding, padding), dtype=dtype, name=name)


def attend(q: Array, k: Array, v: Array, heads: int, limit: int, causal: bool = False) -> Array:
    """softmax(q kᵀ/√d) v for each head, softmax in float32.

    Where the logits of all queries need more than `limit` bytes, the queries are taken in equal parts, one after the
    other; the result is the same.

    Args:
      q: (B, L, heads d) queries.
      k: (B, S, heads d) keys.
      v: (B, S, heads d) values.
      heads: number of heads.
      limit: bytes of logits at once.
      causal: whether query i sees keys 0 to i only.

    Returns:
      (B, L, heads d), dtype of v.
    """
    batch, length, width = q.shape
    q, k, v = (x.reshape(batch, x.shape[1], heads, width // heads) for x in (q, k, v))
    scale = 1 / math.sqrt(width // heads)

    def part(q: Array, first: Array | int) -> Array:
        logits = jnp.einsum("blhd,bshd->bhls", q, k, preferred_element_type=jnp.float32) * jnp.float32(scale)
        if causal:
            rows = first + jnp.arange(q.shape[1])
            seen = rows[:, None] >= jnp.arange(k.shape[1])[None]
            logits = jnp.where(seen[None, None], logits, -jnp.inf)
        weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
        return jnp.einsum("bhls,bshd->blhd", weights, v)

    rows = _rows_at_once(length, 4 * batch * heads * k.shape[1], limit)
    if rows == length:
        out = part(q, 0)
    else:
        parts = jnp.moveaxis(q.reshape(batch, length // rows, rows, *q.shape[2:]), 1, 0)
        starts = rows * jnp.arange(length // rows)
        out = jnp.moveaxis(jax.lax.map(lambda x: part(*x), (parts, starts)), 0, 1)
    return out.reshape(batch, length, width)


def _rows_at_once(length: int, bytes_a_row: int, limit: int) -> int:
    """The largest divisor of `length` whose rows fit into `limit` bytes; at least 1."""
    fitting = max(limit // bytes_a_row, 1)
    return next(n for n in range(min(length, fitting), 0, -1) if length % n == 0)


class Attention(nn.Module):
    """Attention with projections ``to_q``, ``to_k``, ``to_v``, ``to_out.0``.

    Attributes:
      heads: number of heads.
      bias: whether q, k and v have biases; the output has one always.
      limit: bytes of logits at once.
      dtype: of the computation.
    """

    heads: int
    bias: bool
    limit: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None) -> Array:
        """(B, L, C) from x (B, L, C) and what it attends to, (B, S, D) or x itself."""
        context = x if context is None else context
        width = x.shape[-1]
        q = Dense(width, use_bias=self.bias, dtype=self.dtype, name="to_q")(x)
        k = Dense(width, use_bias=self.bias, dtype=self.dtype, name="to_k")(context)
        v = Dense(width, use_bias=self.bias, dtype=self.dtype, name="to_v")(context)
        return Dense(width, dtype=self.dtype, name="to_out.0")(attend(q, k, v, self.heads, self.limit))


class SpatialAttention(nn.Module):
    """(x + Attention(GroupNorm(x)))/scale over all pixels, diffusers' ``Attention`` of an ``Attn`` block."""

    heads: int
    groups: int
    eps: float
    limit: int
    dtype: Dtype
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, H, W, C) from the same."""
        batch, height, width, channels = x.shape
        h = group_norm(x, self.groups, self.eps, "group_norm").reshape(batch, height * width, channels)
        # The attention's own projections lie beside the norm, in one module of diffusers.
        q, k, v = (Dense(channels, dtype=self.dtype, name=name)(h) for name in ("to_q", "to_k", "to_v"))
        h = Dense(channels, dtype=self.dtype, name="to_out.0")(attend(q, k, v, self.heads, self.limit))
        return (x + h.reshape(x.shape)) / jnp.asarray(self.scale, x.dtype)


class ResnetBlock(nn.Module):
    """conv(silu(norm(·))) twice with the time embedding between, plus the input.

    Attributes:
      features: output channels.
      groups: of the normalisation.
      eps: of the normalisation.
      dtype: of the computation.
      scale_shift: whether the embedding scales and shifts the second norm, rather than being added before it.
      scale: what the sum is divided by.
    """

    features: int
    groups: int
    eps: float
    dtype: Dtype
    scale_shift: bool = False
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Array, emb: Array | None = None) -> Array:
        """(B, H, W, features) from x (B, H, W, C) and the time embedding (B, E) or None."""
        h = nn.silu(group_norm(x, self.groups, self.eps, "norm1"))
        h = conv3(self.features, self.dtype, "conv1")(h)
        shift = None
        if emb is not None:
            width = 2 * self.features if self.scale_shift else self.features
            shift = Dense(width, dtype=self.dtype, name="time_emb_proj")(nn.silu(emb))[:, None, None]
        if shift is not None and not self.scale_shift:
            h = h + shift
        h = group_norm(h, self.groups, self.eps, "norm2")
        if shift is not None and self.scale_shift:
            gain, offset = jnp.split(shift, 2, axis=-1)
            h = h * (1 + gain) + offset
        h = conv3(self.features, self.dtype, "conv2")(nn.silu(h))
        if x.shape[-1] != self.features:
            x = Conv(self.features, (1, 1), dtype=self.dtype, name="conv_shortcut")(x)
        return (x + h) / jnp.asarray(self.scale, x.dtype)


class Downsample(nn.Module):
    """3x3 convolution of stride 2, padded by 1 all around (padding 1) or after each axis only (padding 0)."""

    padding: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, ⌈H/2⌉, ⌈W/2⌉, C) (padding 1) or (B, ⌊H/2⌋, ⌊W/2⌋, C) (padding 0)."""
        return conv3(x.shape[-1], self.dtype, "conv", 2, (1, 1) if self.padding else (0, 1))(x)


class Upsample(nn.Module):
    """Every pixel twice along both axes, cut to `size`, then a 3x3 convolution."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array, size: tuple[int, int] | None = None) -> Array:
        """(B, 2H, 2W, C), or (B, *size, C)."""
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        if size is not None:
            x = x[:, : size[0], : size[1]]
        return conv3(x.shape[-1], self.dtype, "conv")(x)


class FeedForward(nn.Module):
    """a · gelu(b) of one projection to twice the width, then back."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, L, C) from the same."""
        h = Dense(8 * x.shape[-1], dtype=self.dtype, name="net.0.proj")(x)
        value, gate = jnp.split(h, 2, axis=-1)
        return Dense(x.shape[-1], dtype=self.dtype, name="net.2")(value * nn.gelu(gate, approximate=False))


class TransformerBlock(nn.Module):
    """Attention of the pixels to each other, to the context, a feed-forward layer; each is added to its input."""

    heads: int
    limit: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array, context: Array) -> Array:
        """(B, L, C) from x (B, L, C) and the context (B, S, D)."""
        x = x + Attention(self.heads, False, self.limit, self.dtype, name="attn1")(layer_norm(x, 1e-5, "norm1"))
        x = x + Attention(self.heads, False, self.limit, self.dtype, name="attn2")(
            layer_norm(x, 1e-5, "norm2"), context
        )
        return x + FeedForward(self.dtype, name="ff")(layer_norm(x, 1e-5, "norm3"))


class Transformer2D(nn.Module):
    """Transformer blocks over the pixels, between two projections, added to the input.

    Attributes:
      heads: number of heads.
      depth: number of blocks.
      linear: whether the projections are kept as matrices (SD 2.x) or as 1x1 convolutions (SD 1.x).
      groups: of the normalisation.
      limit: bytes of logits at once.
      dtype: of the computation.
    """

    heads: int
    depth: int
    linear: bool
    groups: int
    limit: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array, context: Array) -> Array:
        """(B, H, W, C) from x (B, H, W, C) and the context (B, S, D)."""
        batch, height, width, channels = x.shape
        h = group_norm(x, self.groups, 1e-6, "norm")
        h = self._project("proj_in", channels)(h).reshape(batch, height * width, channels)
        for i in range(self.depth):
            block = TransformerBlock(self.heads, self.limit, self.dtype, name=f"transformer_blocks.{i}")
            h = block(h, context)
        return x + self._project("proj_out", channels)(h.reshape(x.shape))

    def _project(self, name: str, channels: int) -> nn.Module:
        if self.linear:
            return Dense(channels, dtype=self.dtype, name=name)
        return Conv(channels, (1, 1), dtype=self.dtype, name=name)


def timestep_embedding(timesteps: Array, dim: int, flip: bool, shift: float) -> Array:
    """[sin(t ω_i), cos(t ω_i)], ω_i = 10000^(−i/(n − shift)), n = dim // 2; cosines first where `flip`.

    Args:
      timesteps: (B,) float32.
      dim: length of the embedding; an odd one ends in a zero.
      flip: whether cosines come first.
      shift: ``freq_shift`` of the configuration.

    Returns:
      (B, dim) float32.
    """
    half = dim // 2
    frequencies = jnp.exp(-math.log(10000) * jnp.arange(half, dtype=jnp.float32) / (half - shift))
    angles = timesteps[:, None] * frequencies[None]
    parts = [jnp.cos(angles), jnp.sin(angles)] if flip else [jnp.sin(angles), jnp.cos(angles)]
    return jnp.pad(jnp.concatenate(parts, axis=-1), ((0, 0), (0, dim % 2)))


class TimeEmbedding(nn.Module):
    """Two layers over the sinusoidal embedding."""

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, features) from (B, dim)."""
        x = Dense(self.features, dtype=self.dtype, name="linear_1")(x)
        return Dense(self.features, dtype=self.dtype, name="linear_2")(nn.silu(x))
