"""The network of DDPM (Ho et al. 2020)."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from pds_jax.models.layers import (
    NIN,
    Activation,
    Block,
    Dtype,
    add_embedding,
    attention,
    conv3x3,
    default_init,
    get_act,
    get_timestep_embedding,
)
from pds_jax.models.normalization import Normalize, get_normalization
from pds_jax.models.up_or_down_sampling import naive_downsample_2d, naive_upsample_2d
from pds_jax.models.utils import (
    check_divisible,
    check_sizes,
    divide_by_sigma,
    get_dtype,
    get_sigmas,
    image_size,
    register_model,
    remat_keeping_name,
)
from pds_jax.types import Array, PdsError


class AttnBlock(Block):
    """Residual self-attention over all pixels."""

    normalize: Normalize
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
        h = self.normalize(x)
        q, k, v = (NIN(c, dtype=self.dtype)(h) for _ in range(3))
        return x + NIN(c, init_scale=0.0, dtype=self.dtype)(attention(q, k, v))


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by 2, with or without a 3x3 convolution."""

    with_conv: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Upsample.

        Args:
          x: (B, H, W, C).

        Returns:
          (B, 2H, 2W, C).
        """
        h = naive_upsample_2d(x)
        return conv3x3(x.shape[-1], dtype=self.dtype)(h) if self.with_conv else h


class Downsample(nn.Module):
    """Downsampling by 2: strided 3x3 convolution or box average."""

    with_conv: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Downsample.

        Args:
          x: (B, H, W, C).

        Returns:
          (B, H / 2, W / 2, C).
        """
        return conv3x3(x.shape[-1], stride=2, dtype=self.dtype)(x) if self.with_conv else naive_downsample_2d(x)


class ResnetBlockDDPM(Block):
    """Residual block with the embedding of the noise level added in the middle."""

    act: Activation
    normalize: Normalize
    out_ch: int | None = None
    dropout: float = 0.5
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
        h = conv3x3(out_ch, dtype=self.dtype)(self.act(self.normalize(x)))
        h = add_embedding(h, temb, self.act, self.dtype)
        h = self.act(self.normalize(h))
        h = nn.Dropout(self.dropout)(h, deterministic=not train)
        h = conv3x3(out_ch, init_scale=0.0, dtype=self.dtype)(h)
        return h + (x if x.shape[-1] == out_ch else NIN(out_ch, dtype=self.dtype)(x))


class DDPM(nn.Module):
    """DDPM's U-Net; every field is the option of the same name in score_sde's ``config.model``.

    ``attn_resolutions`` are heights. ``sigmas`` are the noise levels that a label indexes, needed only with
    ``scale_by_sigma``.
    """

    nf: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    nonlinearity: str = "swish"
    normalization: str = "GroupNorm"
    dropout: float = 0.0
    resamp_with_conv: bool = True
    conditional: bool = True
    scale_by_sigma: bool = False
    centered: bool = True
    sigmas: tuple[float, ...] = ()
    dtype: Dtype = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        """Refuse unknown options before any work."""
        get_act(self.nonlinearity)
        get_normalization(self.normalization, self.dtype)
        check_sizes(self.nf, self.ch_mult, self.num_res_blocks, self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, labels: Array, train: bool = True) -> Array:
        """Evaluate the network.

        Args:
          x: (B, H, W, C) images in the data's range ([0, 1], or [-1, 1] if centered).
          labels: (B,) labels of the noise level.
          train: whether dropout is on; it then needs a ``dropout`` rng.

        Returns:
          (B, H, W, C) float32.

        Raises:
          PdsError: if H or W is not a multiple of 2^(levels - 1).
        """
        check_divisible(x.shape[1:3], len(self.ch_mult))
        act, normalize = get_act(self.nonlinearity), get_normalization(self.normalization, self.dtype)
        cls = remat_keeping_name(ResnetBlockDDPM, self.remat, static_argnums=(3,))
        block = partial(cls, act=act, normalize=normalize, dropout=self.dropout, dtype=self.dtype)
        attend = partial(AttnBlock, normalize=normalize, dtype=self.dtype)
        temb = self._embed(labels)

        skips = [conv3x3(self.nf, dtype=self.dtype)((x if self.centered else 2 * x - 1).astype(self.dtype))]
        for level, mult in enumerate(self.ch_mult):
            for _ in range(self.num_res_blocks):
                h = block(out_ch=self.nf * mult)(skips[-1], temb, train)
                skips.append(attend()(h) if h.shape[1] in self.attn_resolutions else h)
            if level != len(self.ch_mult) - 1:
                skips.append(Downsample(self.resamp_with_conv, dtype=self.dtype)(skips[-1]))

        h = block()(skips[-1], temb, train)
        h = attend()(h)
        h = block()(h, temb, train)

        for level, mult in reversed(list(enumerate(self.ch_mult))):
            for _ in range(self.num_res_blocks + 1):
                h = block(out_ch=self.nf * mult)(jnp.concatenate([h, skips.pop()], axis=-1), temb, train)
            if h.shape[1] in self.attn_resolutions:
                h = attend()(h)
            if level != 0:
                h = Upsample(self.resamp_with_conv, dtype=self.dtype)(h)

        h = conv3x3(x.shape[-1], init_scale=0.0, dtype=self.dtype)(act(normalize(h)))
        if self.scale_by_sigma:
            return divide_by_sigma(h, jnp.asarray(self.sigmas, jnp.float32)[labels.astype(jnp.int32)])
        return h.astype(jnp.float32)

    def _embed(self, labels: Array) -> Array | None:
        """(B, 4 nf) embedding of the noise level, or None for an unconditional network."""
        if not self.conditional:
            return None
        dense = partial(nn.Dense, 4 * self.nf, kernel_init=default_init(), dtype=self.dtype)
        temb = dense()(get_timestep_embedding(labels, self.nf))
        return dense()(get_act(self.nonlinearity)(temb))


def check_options(config: Any) -> None:
    """Raise if a U-Net would divide by another noise level than the image's, or has an attention that is not here.

    Args:
      config: sections model and training.

    Raises:
      PdsError: names the field.
    """
    model, training = config.model, config.training
    attention_type = model.get("attention_type", "ddpm")
    if attention_type != "ddpm":
        raise PdsError(
            f"model.attention_type={attention_type!r}: the attention of {model.name!r} is 'ddpm', as in score_sde; set "
            "model.attention_type='ddpm'"
        )
    embedding = "positional" if model.name == "ddpm" else str(model.embedding_type).lower()
    is_sigma = str(training.sde).lower() == "vesde" and training.continuous
    if is_sigma and model.scale_by_sigma and embedding == "positional":
        raise PdsError(
            "model.scale_by_sigma=True with training.sde='vesde' and continuous=True: the label is σ, but "
            f"{model.name!r} with a positional embedding takes it for the index of a noise level; set "
            "model.scale_by_sigma=False or "
            + ("training.continuous=False" if model.name == "ddpm" else "model.embedding_type='fourier'")
        )


@register_model("ddpm")
def from_config(config: Any) -> DDPM:
    """DDPM's network from a score_sde config.

    Args:
      config: sections data, model and training.

    Returns:
      The module.

    Raises:
      PdsError: for an unknown option, an image size that does not divide, or what :func:`check_options` refuses.
    """
    model = config.model
    check_options(config)
    check_divisible(image_size(config), len(model.ch_mult))
    return DDPM(
        nf=model.nf,
        ch_mult=tuple(model.ch_mult),
        num_res_blocks=model.num_res_blocks,
        attn_resolutions=tuple(model.attn_resolutions),
        nonlinearity=model.nonlinearity,
        normalization=model.normalization,
        dropout=model.dropout,
        resamp_with_conv=model.resamp_with_conv,
        conditional=model.conditional,
        scale_by_sigma=model.scale_by_sigma,
        centered=config.data.centered,
        sigmas=tuple(get_sigmas(config).tolist()) if model.scale_by_sigma else (),
        dtype=get_dtype(config),
        remat=bool(model.get("remat", False)),
    )
