"""ADM (Dhariwal and Nichol 2021): the U-Net of guided-diffusion, DhariwalUNet of EDM, and ADM's classifiers.

One network serves both programs: they compute the same from weights that are packed differently. What differs is an
option: the order of q, k and v in one matrix (``attention_order``), the number of groups and of heads, resampling
inside residual blocks or by layers of its own.

Source: Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", NeurIPS 2021, section 3 and appendix H.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pds_jax.models import up_or_down_sampling as resampling
from pds_jax.models.labels import class_rows, label_rows
from pds_jax.models.layers import Block, Dtype, attention, conv1x1, conv3x3, default_init
from pds_jax.models.layerspp import GroupNorm
from pds_jax.models.utils import (
    check_divisible,
    check_sizes,
    get_dtype,
    image_size,
    register_model,
    remat_keeping_name,
)
from pds_jax.types import Array, PdsError, check_choice

ATTENTION_ORDERS = ("legacy", "new", "interleaved")
POOLS = ("attention", "adaptive", "spatial")
_EPSILON = 1e-5


def cos_sin_embedding(t: Array, dim: int) -> Array:
    """[cos(t ω_i), sin(t ω_i)], ω_i = 10000^(−i/n), n = dim // 2; (B, dim) float32 of t (B,); an odd dim ends in 0."""
    half = dim // 2
    omega = np.exp(-np.log(10000) * np.arange(half) / half).astype(np.float32)
    angles = t.astype(jnp.float32)[:, None] * omega[None]
    return jnp.pad(jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1), [(0, 0), (0, dim % 2)])


def norm(x: Array, groups: int, dtype: Dtype) -> Array:
    """Group normalisation in float32 with ε = 1e-5, a submodule named ``GroupNorm_n``; result (B, H, W, C) of dtype."""
    if groups and x.shape[-1] % groups:
        raise PdsError(f"a layer of {x.shape[-1]} channels cannot be split into {groups} groups; widen model.nf")
    return GroupNorm(_EPSILON, groups)(x.astype(jnp.float32)).astype(dtype)


def split_heads(qkv: Array, heads: int, order: str) -> tuple[Array, Array, Array]:
    """q, k and v (..., heads, c), from (..., 3 heads c) packed in one of three orders, slowest index first.

    new: (3, heads, c); legacy: (heads, 3, c), both of guided-diffusion; interleaved: (heads, c, 3), of EDM.
    """
    c = qkv.shape[-1] // (3 * heads)
    shape, axis = {"new": ((3, heads, c), -3), "legacy": ((heads, 3, c), -2), "interleaved": ((heads, c, 3), -1)}[order]
    parts = qkv.reshape(*qkv.shape[:-1], *shape)
    q, k, v = (jnp.take(parts, i, axis=axis) for i in range(3))
    return q, k, v


def heads_attention(q: Array, k: Array, v: Array) -> Array:
    """Attention over pixels, each head by itself: (B, H, W, heads·c) from three (B, H, W, heads, c)."""
    out = jax.vmap(attention, in_axes=3, out_axes=3)(q, k, v)
    return out.reshape(*out.shape[:3], -1)


class ADMAttention(Block):
    """Residual self-attention over pixels, x + proj(attend(norm(x)))."""

    heads: int = 1
    order: str = "legacy"
    groups: int = 32
    dtype: Dtype = jnp.float32

    @nn.compact
    def forward(self, x: Array, temb: Array | None = None, train: bool = False) -> Array:
        """(B, H, W, C) from (B, H, W, C); temb and train change nothing."""
        c = x.shape[-1]
        if c % self.heads:
            raise PdsError(f"attention of {self.heads} heads needs a multiple of as many channels, a layer has {c}")
        dense = partial(nn.Dense, kernel_init=default_init(), dtype=self.dtype)
        qkv = dense(3 * c)(norm(x, self.groups, self.dtype))
        return x + dense(c)(heads_attention(*split_heads(qkv, self.heads, self.order)))


class ADMBlock(Block):
    """Residual block that may resample both of its paths by 2, after its first norm."""

    out_ch: int = 0
    up: bool = False
    down: bool = False
    scale_shift: bool = True
    dropout: float = 0.0
    groups: int = 32
    dtype: Dtype = jnp.float32

    @nn.compact
    def forward(self, x: Array, temb: Array | None = None, train: bool = False) -> Array:
        """(B, H', W', out_ch) from x (B, H, W, C) and temb (B, D); H' = 2H if up, H / 2 if down."""
        assert temb is not None
        out_ch = self.out_ch or x.shape[-1]
        resample = resampling.naive_upsample_2d if self.up else resampling.naive_downsample_2d
        h = nn.swish(norm(x, self.groups, self.dtype))
        if self.up or self.down:
            h, x = resample(h), resample(x)
        h = conv3x3(out_ch, dtype=self.dtype)(h)
        width = out_ch * (2 if self.scale_shift else 1)
        shift = nn.Dense(width, kernel_init=default_init(), dtype=self.dtype)(nn.swish(temb))[:, None, None, :]
        if self.scale_shift:
            scale, shift = jnp.split(shift, 2, axis=-1)
            h = norm(h, self.groups, self.dtype) * (1 + scale) + shift
        else:
            h = norm(h + shift, self.groups, self.dtype)
        h = nn.Dropout(self.dropout)(nn.swish(h), deterministic=not train)
        h = conv3x3(out_ch, init_scale=0.0, dtype=self.dtype)(h)
        if x.shape[-1] != out_ch:
            x = conv1x1(out_ch, dtype=self.dtype)(x)
        return x + h


class _Unet(nn.Module):
    """What the U-Net and the classifier share: the embedding, the contracting path and the middle.

    ``attn_resolutions`` are heights. ``heads`` is the number of heads, or 0 for C // head_channels of them; where that
    is 0 there is no attention. ``heads_up`` is that number on the expanding path, 0 for the same. ``groups`` is the
    number of groups of every normalisation, 0 for min(C // 4, 32).
    """

    nf: int
    ch_mult: tuple[float, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    out_channels: int = 0
    heads: int = 0
    head_channels: int = 64
    heads_up: int = 0
    attention_order: str = "legacy"
    resblock_updown: bool = True
    conv_resample: bool = True
    scale_shift: bool = True
    groups: int = 32
    dropout: float = 0.0
    label_dim: int = 0
    augment_dim: int = 0
    label_dropout: float = 0.0
    channel_mult_emb: int = 4
    centered: bool = True
    dtype: Dtype = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        """Refuse unknown options before any work."""
        check_choice("model.attention_order", self.attention_order, ATTENTION_ORDERS)
        check_sizes(self.nf, [self._width(mult) for mult in self.ch_mult], self.num_res_blocks, self.dropout)
        super().__post_init__()

    def _width(self, mult: float) -> int:
        """Channels of a resolution; a multiple may be a half."""
        return int(self.nf * mult)

    def _block(self, **options: Any) -> Any:
        cls = remat_keeping_name(ADMBlock, self.remat, static_argnums=(3,))
        return cls(scale_shift=self.scale_shift, dropout=self.dropout, groups=self.groups, dtype=self.dtype, **options)

    def _attend(self, h: Array, up: bool = False) -> Array:
        heads = (self.heads_up if up else 0) or self.heads or h.shape[-1] // self.head_channels
        if not heads:
            return h
        cls = remat_keeping_name(ADMAttention, self.remat, static_argnums=(3,))
        options: dict[str, Any] = {"groups": self.groups, "dtype": self.dtype}
        out: Array = cls(heads=heads, order=self.attention_order, **options)(h, None, False)
        return out

    def _embed(self, noise: Array, labels: Array | None, augment: Array | None, train: bool) -> Array:
        """(B, channel_mult_emb nf) embedding of the noise label and the class, before a block's activation."""
        dense = partial(nn.Dense, kernel_init=default_init(), dtype=self.dtype)
        width, batch = self.nf * self.channel_mult_emb, noise.shape[0]
        temb = cos_sin_embedding(noise, self.nf)
        if self.augment_dim:
            rows = label_rows(augment, batch, self.augment_dim, "augment_labels")
            temb = temb + dense(self.nf, use_bias=False, name="map_augment")(rows).astype(jnp.float32)
        temb = dense(width)(temb)
        temb = dense(width)(nn.swish(temb))
        if self.label_dim:
            temb = temb + dense(width, use_bias=False, name="map_label")(class_rows(self, labels, batch, train))
        return temb

    def _encode(self, x: Array, temb: Array, train: bool) -> list[Array]:
        """Every activation of the contracting path, one for each layer that the expanding path concatenates."""
        check_divisible(x.shape[1:3], len(self.ch_mult))
        skips = [conv3x3(self._width(self.ch_mult[0]), dtype=self.dtype)(x.astype(self.dtype))]
        for level, mult in enumerate(self.ch_mult):
            for _ in range(self.num_res_blocks):
                h = self._block(out_ch=self._width(mult))(skips[-1], temb, train)
                skips.append(self._attend(h) if h.shape[1] in self.attn_resolutions else h)
            if level != len(self.ch_mult) - 1:
                skips.append(self._resample(skips[-1], temb, train, up=False))
        return skips

    def _middle(self, h: Array, temb: Array, train: bool) -> Array:
        h = self._block()(h, temb, train)
        out: Array = self._block()(self._attend(h), temb, train)
        return out

    def _resample(self, h: Array, temb: Array, train: bool, up: bool) -> Array:
        if self.resblock_updown:
            out: Array = self._block(up=up, down=not up)(h, temb, train)
            return out
        if up:
            h = resampling.naive_upsample_2d(h)
            return conv3x3(h.shape[-1], dtype=self.dtype)(h) if self.conv_resample else h
        if not self.conv_resample:
            return resampling.naive_downsample_2d(h)
        # PyTorch pads both sides by one; XLA's SAME would pad one side only.
        conv = partial(nn.Conv, kernel_size=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        return conv(h.shape[-1], kernel_init=default_init(), dtype=self.dtype)(h)


class ADM(_Unet):
    """The U-Net; see :class:`_Unet` for its fields. ``out_channels`` is 0 for as many as the input has."""

    @nn.compact
    def __call__(
        self,
        x: Array,
        time_cond: Array,
        train: bool = True,
        labels: Array | None = None,
        augment_labels: Array | None = None,
    ) -> Array:
        """F(x; noise label, labels), float32 (B, H, W, out_channels), of x (B, H, W, C) in [−1, 1] and label (B,).

        ``labels`` (B, label_dim) are one-hot or soft, None is the zero vector; ``augment_labels`` (B, augment_dim) of
        the augmentations, None outside training. In training, dropout and label dropout need a ``dropout`` rng.

        Raises PdsError if H or W cannot be halved often enough, for labels of another shape, or for a width that does
        not split into groups or heads.
        """
        temb = self._embed(time_cond, labels, augment_labels, train)
        skips = self._encode(x, temb, train)
        h = self._middle(skips[-1], temb, train)
        for level, mult in reversed(list(enumerate(self.ch_mult))):
            for _ in range(self.num_res_blocks + 1):
                h = self._block(out_ch=self._width(mult))(jnp.concatenate([h, skips.pop()], axis=-1), temb, train)
                if h.shape[1] in self.attn_resolutions:
                    h = self._attend(h, up=True)
            if level:
                h = self._resample(h, temb, train, up=True)
        h = nn.swish(norm(h, self.groups, self.dtype))
        return conv3x3(self.out_channels or x.shape[-1], init_scale=0.0, dtype=self.dtype)(h).astype(jnp.float32)


class AttentionPool(nn.Module):
    """One token from all pixels: their mean, prepended, attends to itself and to them (CLIP's pooling)."""

    out_dim: int
    head_channels: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, out_dim) from (B, H, W, C)."""
        b, height, width, c = x.shape
        place = self.param("positional_embedding", nn.initializers.normal(c**-0.5), (c, height * width + 1))
        tokens = x.reshape(b, height * width, c)
        tokens = jnp.concatenate([tokens.mean(axis=1, keepdims=True), tokens], axis=1)
        tokens = tokens + place.T[None].astype(self.dtype)
        dense = partial(nn.Dense, kernel_init=default_init(), dtype=self.dtype)
        qkv = split_heads(dense(3 * c)(tokens)[:, :, None, :], c // self.head_channels, "new")
        return dense(self.out_dim)(heads_attention(*qkv)[:, 0, 0])


class ADMClassifier(_Unet):
    """Classifier of noisy images: the contracting half of the U-Net and a pooling; ``out_channels`` is the classes."""

    pool: str = "attention"

    def __post_init__(self) -> None:
        """Refuse an unknown pooling before any work."""
        check_choice("model.pool", self.pool, POOLS)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, time_cond: Array, train: bool = True) -> Array:
        """Logits (B, out_channels) float32 of x (B, H, W, C) in [−1, 1] and noise labels (B,)."""
        temb = self._embed(time_cond, None, None, train)
        skips = self._encode(x, temb, train)
        h = self._middle(skips[-1], temb, train)
        dense = partial(nn.Dense, kernel_init=default_init(), dtype=self.dtype)
        if self.pool == "spatial":
            means = jnp.concatenate([a.mean(axis=(1, 2)) for a in (*skips, h)], axis=-1)
            hidden = nn.relu(dense(2048)(means))
            return dense(self.out_channels)(hidden).astype(jnp.float32)
        h = nn.swish(norm(h, self.groups, self.dtype))
        if self.pool == "attention":
            pool = AttentionPool(self.out_channels, self.head_channels, self.dtype)
            return pool(h).astype(jnp.float32)
        return dense(self.out_channels)(h.mean(axis=(1, 2))).astype(jnp.float32)


def _fields(config: Any) -> dict[str, Any]:
    """Fields of both networks from a config."""
    model = config.model
    check_divisible(image_size(config), len(model.ch_mult))
    names = (
        "nf num_res_blocks dropout heads head_channels heads_up attention_order resblock_updown conv_resample "
        "scale_shift groups label_dim augment_dim label_dropout channel_mult_emb out_channels"
    )
    return {
        **{name: model[name] for name in names.split()},
        "ch_mult": tuple(model.ch_mult),
        "attn_resolutions": tuple(model.attn_resolutions),
        "dtype": get_dtype(config),
        "remat": bool(model.get("remat", False)),
    }


@register_model("adm")
def from_config(config: Any) -> ADM:
    """ADM's U-Net from a config whose model section has the fields of :class:`ADM`.

    Raises PdsError for an unknown option or an image size that does not divide.
    """
    return ADM(**_fields(config))


@register_model("adm_classifier")
def classifier_from_config(config: Any) -> ADMClassifier:
    """ADM's classifier from a config whose model section has the fields of :class:`ADMClassifier`.

    Raises PdsError as :func:`from_config`.
    """
    return ADMClassifier(**_fields(config), pool=config.model.pool)
