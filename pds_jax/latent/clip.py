"""CLIP's text and image encoders, with the layout of transformers' ``CLIPTextModel`` and ``CLIPModel``.

Stable Diffusion 1.x takes the text encoder of ViT-L/14 (quick GELU), 2.x that of OpenCLIP's ViT-H/14 (GELU), kept with
one layer less, so that its last layer is the penultimate one. Source: Radford et al., "Learning Transferable Visual
Models From Natural Language Supervision", ICML 2021.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from pds_jax.latent.blocks import ATTENTION_BYTES, Conv, Dense, Dtype, Embed, attend, layer_norm
from pds_jax.types import Array


def quick_gelu(x: Array) -> Array:
    """x · sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: Array) -> Array:
    """x Φ(x), exact."""
    return nn.gelu(x, approximate=False)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu}


@dataclasses.dataclass(frozen=True)
class TransformerSizes:
    """What decides the parameters of one of CLIP's encoders and what it computes.

    Attributes:
      width: of the hidden states.
      inner: of the feed-forward layers.
      layers: number of them.
      heads: of the attention.
      activation: "quick_gelu" or "gelu".
      eps: of the normalisation.
    """

    width: int
    inner: int
    layers: int
    heads: int
    activation: str
    eps: float


@dataclasses.dataclass(frozen=True)
class TextSizes(TransformerSizes):
    """The text encoder's.

    Attributes:
      vocabulary: number of tokens.
      positions: tokens of a text.
      end: token whose last state stands for the text; 2 means that of the highest number, as in CLIP's first files.
    """

    vocabulary: int
    positions: int
    end: int


@dataclasses.dataclass(frozen=True)
class VisionSizes(TransformerSizes):
    """The image encoder's.

    Attributes:
      image: pixels of an image along each axis.
      patch: pixels of a patch along each axis.
    """

    image: int
    patch: int


class ClipText(nn.Module):
    """The text encoder."""

    sizes: TextSizes
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array) -> tuple[Array, Array]:
        """States of all tokens after the final norm, float32 (B, L, width), and the text's, (B, width).

        Args:
          tokens: (B, L) int32, L at most ``positions``.
        """
        sizes = self.sizes
        x = Embeddings(sizes, self.dtype, name="embeddings")(tokens)
        x = Layers(sizes, True, self.dtype, name="encoder")(x)
        x = layer_norm(x, sizes.eps, "final_layer_norm").astype(jnp.float32)
        last = jnp.argmax(tokens if sizes.end == 2 else tokens == sizes.end, axis=1)
        return x, jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]


class Embeddings(nn.Module):
    """Tokens plus positions."""

    sizes: TextSizes
    dtype: Dtype

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """(B, L, width) from (B, L)."""
        sizes = self.sizes
        token = Embed(sizes.vocabulary, sizes.width, dtype=self.dtype, name="token_embedding")(tokens)
        position = Embed(sizes.positions, sizes.width, dtype=self.dtype, name="position_embedding")
        return token + position(jnp.arange(tokens.shape[1]))[None]


class ClipVision(nn.Module):
    """The image encoder."""

    sizes: VisionSizes
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """States of images, float32 (B, width), from (B, image, image, 3), normalised."""
        sizes = self.sizes
        x = PatchEmbeddings(sizes, self.dtype, name="embeddings")(images.astype(self.dtype))
        x = layer_norm(x, sizes.eps, "pre_layrnorm")
        x = Layers(sizes, False, self.dtype, name="encoder")(x)
        x = layer_norm(x[:, 0], sizes.eps, "post_layernorm")
        return x.astype(jnp.float32)


class PatchEmbeddings(nn.Module):
    """A class vector and one vector a patch, plus positions."""

    sizes: VisionSizes
    dtype: Dtype

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """(B, 1 + patches, width)."""
        sizes = self.sizes
        patch = (sizes.patch, sizes.patch)
        conv = Conv(
            sizes.width, patch, patch, padding="VALID", use_bias=False, dtype=self.dtype, name="patch_embedding"
        )
        patches = conv(images).reshape(images.shape[0], -1, sizes.width)
        first = self.param("class_embedding", nn.initializers.zeros, (sizes.width,)).astype(self.dtype)
        first = jnp.broadcast_to(first[None, None], (images.shape[0], 1, sizes.width))
        count = patches.shape[1] + 1
        position = Embed(count, sizes.width, dtype=self.dtype, name="position_embedding")(jnp.arange(count))
        return jnp.concatenate([first, patches], axis=1) + position[None]


class Layers(nn.Module):
    """The transformer's layers, one after the other."""

    sizes: TransformerSizes
    causal: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, L, width) from the same."""
        for i in range(self.sizes.layers):
            x = Layer(self.sizes, self.causal, self.dtype, name=f"layers.{i}")(x)
        return x


class Layer(nn.Module):
    """Attention, then a feed-forward layer, each of the norm of its input and added to it."""

    sizes: TransformerSizes
    causal: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, L, width) from the same."""
        sizes, dtype = self.sizes, self.dtype
        h = layer_norm(x, sizes.eps, "layer_norm1")
        x = x + SelfAttention(sizes.heads, self.causal, dtype, name="self_attn")(h)
        h = layer_norm(x, sizes.eps, "layer_norm2")
        return x + FeedForward(sizes, dtype, name="mlp")(h)


class SelfAttention(nn.Module):
    """Attention of the tokens among each other, each to those before it where causal."""

    heads: int
    causal: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, L, width) from the same."""
        width = x.shape[-1]
        q, k, v = (Dense(width, dtype=self.dtype, name=name)(x) for name in ("q_proj", "k_proj", "v_proj"))
        h = attend(q, k, v, self.heads, ATTENTION_BYTES, self.causal)
        return Dense(width, dtype=self.dtype, name="out_proj")(h)


class FeedForward(nn.Module):
    """Two layers with the activation between."""

    sizes: TransformerSizes
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, L, width) from the same."""
        h = Dense(self.sizes.inner, dtype=self.dtype, name="fc1")(x)
        return Dense(x.shape[-1], dtype=self.dtype, name="fc2")(ACTIVATIONS[self.sizes.activation](h))
