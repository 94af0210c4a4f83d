"""NCSN++ and DDPM++ (Song et al. 2021, "Score-Based Generative Modeling through SDEs", appendix H).

A U-Net of residual blocks with attention at chosen resolutions, and three ways in and out: the plain ones, and
pyramids of the input or the output (``progressive_input``, ``progressive``) that are summed or concatenated.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from pds_jax.models import layerspp
from pds_jax.models.ddpm import check_options
from pds_jax.models.layers import Dtype, conv3x3, default_init, get_act, get_timestep_embedding
from pds_jax.models.patches import check_patch_size, from_patches, to_patches
from pds_jax.models.up_or_down_sampling import fir_taps
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
from pds_jax.types import Array, PdsError, check_choice

EMBEDDINGS = ("fourier", "positional")
RESBLOCKS = ("ddpm", "biggan")
PROGRESSIVE = ("none", "output_skip", "residual")
PROGRESSIVE_INPUT = ("none", "input_skip", "residual")
COMBINE = ("sum", "cat")


class NCSNpp(nn.Module):
    """NCSN++; every field is the option of the same name in score_sde's ``config.model``.

    ``attn_resolutions`` are heights. ``sigmas`` are the noise levels that a positional embedding's label indexes,
    needed only with ``scale_by_sigma``. ``patch_size`` p, which score_sde has not: the network computes at H/p x W/p
    on the p x p x C values of each patch, which costs about p² times less.
    """

    nf: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    nonlinearity: str = "swish"
    dropout: float = 0.0
    resamp_with_conv: bool = True
    conditional: bool = True
    fir: bool = True
    fir_kernel: tuple[float, ...] = (1, 3, 3, 1)
    skip_rescale: bool = True
    resblock_type: str = "biggan"
    progressive: str = "none"
    progressive_input: str = "residual"
    progressive_combine: str = "sum"
    embedding_type: str = "fourier"
    fourier_scale: float = 16.0
    init_scale: float = 0.0
    scale_by_sigma: bool = True
    centered: bool = False
    sigmas: tuple[float, ...] = ()
    patch_size: int = 1
    dtype: Dtype = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        """Refuse unknown options before any work."""
        check_choice("model.embedding_type", self.embedding_type, EMBEDDINGS)
        check_choice("model.resblock_type", self.resblock_type, RESBLOCKS)
        check_choice("model.progressive", self.progressive, PROGRESSIVE)
        check_choice("model.progressive_input", self.progressive_input, PROGRESSIVE_INPUT)
        check_choice("model.progressive_combine", self.progressive_combine, COMBINE)
        get_act(self.nonlinearity)
        fir_taps(self.fir_kernel, factor=2)
        check_sizes(self.nf, self.ch_mult, self.num_res_blocks, self.dropout)
        check_patch_size(self.patch_size)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, time_cond: Array, train: bool = True) -> Array:
        """Evaluate the network.

        Args:
          x: (B, H, W, C) images in the data's range ([0, 1], or [-1, 1] if centered).
          time_cond: (B,) noise level: σ for a Fourier embedding, a label for a positional one.
          train: whether dropout is on; it then needs a ``dropout`` rng.

        Returns:
          (B, H, W, C) float32.

        Raises:
          PdsError: if H or W is not a multiple of patch_size 2^(levels - 1).
        """
        check_divisible(x.shape[1:3], len(self.ch_mult), self.patch_size)
        block, attend, resample = self._parts()
        temb = self._embed(time_cond)
        x = to_patches((x if self.centered else 2 * x - 1).astype(self.dtype), self.patch_size)

        skips = self._encode(x, temb, train, block, attend, resample)
        h = block()(skips[-1], temb, train)
        h = attend()(h)
        h = block()(h, temb, train)
        h = from_patches(self._decode(h, skips, x.shape[-1], temb, train, block, attend, resample), self.patch_size)
        return divide_by_sigma(h, self._sigma(time_cond)) if self.scale_by_sigma else h.astype(jnp.float32)

    def _parts(self) -> tuple[Callable[..., Any], Callable[..., Any], dict[str, Any]]:
        """The residual block, the attention block and the keywords of resampling layers."""
        shared: dict[str, Any] = {"skip_rescale": self.skip_rescale, "init_scale": self.init_scale, "dtype": self.dtype}
        resample = {"fir": self.fir, "fir_kernel": self.fir_kernel, "dtype": self.dtype}
        options = {"act": get_act(self.nonlinearity), "dropout": self.dropout, **shared}
        if self.resblock_type == "biggan":
            cls = remat_keeping_name(layerspp.ResnetBlockBigGANpp, self.remat, static_argnums=(3,))
            block = partial(cls, fir=self.fir, fir_kernel=self.fir_kernel, **options)
        else:
            block = partial(remat_keeping_name(layerspp.ResnetBlockDDPMpp, self.remat, static_argnums=(3,)), **options)
        return block, partial(layerspp.AttnBlockpp, **shared), resample

    def _embed(self, time_cond: Array) -> Array | None:
        """(B, 4 nf) embedding of the noise level, or None for an unconditional network."""
        if self.embedding_type == "fourier":
            log_sigma = jnp.log(time_cond.astype(jnp.float32))
            temb = layerspp.GaussianFourierProjection(self.nf, self.fourier_scale)(log_sigma)
        else:
            temb = get_timestep_embedding(time_cond, self.nf)
        if not self.conditional:
            return None
        dense = partial(nn.Dense, 4 * self.nf, kernel_init=default_init(), dtype=self.dtype)
        temb = dense()(temb)
        return dense()(get_act(self.nonlinearity)(temb))

    def _sigma(self, time_cond: Array) -> Array:
        """(B,) noise level that the output is divided by."""
        if self.embedding_type == "fourier":
            return time_cond
        return jnp.asarray(self.sigmas, jnp.float32)[time_cond.astype(jnp.int32)]

    def _encode(
        self,
        x: Array,
        temb: Array | None,
        train: bool,
        block: Callable[..., Any],
        attend: Callable[..., Any],
        resample: dict[str, Any],
    ) -> list[Array]:
        """Contracting path: every activation that the expanding path concatenates."""
        pyramid = x
        skips = [conv3x3(self.nf, dtype=self.dtype)(x)]
        for level, mult in enumerate(self.ch_mult):
            for _ in range(self.num_res_blocks):
                h = block(out_ch=self.nf * mult)(skips[-1], temb, train)
                skips.append(attend()(h) if h.shape[1] in self.attn_resolutions else h)
            if level == len(self.ch_mult) - 1:
                break
            if self.resblock_type == "ddpm":
                h = layerspp.Downsample(with_conv=self.resamp_with_conv, **resample)(skips[-1])
            else:
                h = block(down=True)(skips[-1], temb, train)
            if self.progressive_input == "input_skip":
                pyramid = layerspp.Downsample(with_conv=False, **resample)(pyramid)
                h = layerspp.Combine(self.progressive_combine, dtype=self.dtype)(pyramid, h)
            elif self.progressive_input == "residual":
                pyramid = layerspp.Downsample(out_ch=h.shape[-1], with_conv=True, **resample)(pyramid)
                h = pyramid = layerspp.rescaled_sum(pyramid, h, self.skip_rescale)
            skips.append(h)
        return skips

    def _decode(
        self,
        h: Array,
        skips: list[Array],
        channels: int,
        temb: Array | None,
        train: bool,
        block: Callable[..., Any],
        attend: Callable[..., Any],
        resample: dict[str, Any],
    ) -> Array:
        """Expanding path, (B, H, W, channels)."""
        act = get_act(self.nonlinearity)
        head = partial(conv3x3, init_scale=self.init_scale, dtype=self.dtype)
        pyramid: Array | None = None
        for level, mult in reversed(list(enumerate(self.ch_mult))):
            for _ in range(self.num_res_blocks + 1):
                h = block(out_ch=self.nf * mult)(jnp.concatenate([h, skips.pop()], axis=-1), temb, train)
            if h.shape[1] in self.attn_resolutions:
                h = attend()(h)

            if self.progressive == "output_skip":
                out = head(channels)(act(layerspp.group_norm(h, self.dtype)))
                if pyramid is not None:
                    out = out + layerspp.Upsample(with_conv=False, **resample)(pyramid)
                pyramid = out
            elif self.progressive == "residual":
                if pyramid is None:
                    pyramid = conv3x3(h.shape[-1], dtype=self.dtype)(act(layerspp.group_norm(h, self.dtype)))
                else:
                    pyramid = layerspp.Upsample(out_ch=h.shape[-1], with_conv=True, **resample)(pyramid)
                    h = pyramid = layerspp.rescaled_sum(pyramid, h, self.skip_rescale)

            if level != 0 and self.resblock_type == "ddpm":
                h = layerspp.Upsample(with_conv=self.resamp_with_conv, **resample)(h)
            elif level != 0:
                h = block(up=True)(h, temb, train)
        if pyramid is not None and self.progressive == "output_skip":
            return pyramid
        return head(channels)(act(layerspp.group_norm(h, self.dtype)))


@register_model("ncsnpp", patches=True)
def from_config(config: Any) -> NCSNpp:
    """NCSN++ or DDPM++ from a score_sde config.

    Args:
      config: sections data, model and training.

    Returns:
      The module.

    Raises:
      PdsError: for an unknown option, an image size that does not divide, a Fourier embedding without continuous
        training (its label is σ itself), or what ``ddpm.check_options`` refuses.
    """
    model = config.model
    if str(model.embedding_type).lower() == "fourier" and not config.training.continuous:
        raise PdsError("model.embedding_type='fourier' needs training.continuous=True: its label is σ, not an index")
    check_options(config)
    normalization = model.get("normalization", "GroupNorm")
    if normalization != "GroupNorm":
        raise PdsError(
            f"model.normalization={normalization!r}: 'ncsnpp' normalises by 'GroupNorm', as in score_sde; set "
            "model.normalization='GroupNorm'"
        )
    check_divisible(image_size(config), len(model.ch_mult), check_patch_size(model.get("patch_size", 1)))
    return NCSNpp(
        nf=model.nf,
        ch_mult=tuple(model.ch_mult),
        num_res_blocks=model.num_res_blocks,
        attn_resolutions=tuple(model.attn_resolutions),
        nonlinearity=model.nonlinearity,
        dropout=model.dropout,
        resamp_with_conv=model.resamp_with_conv,
        conditional=model.conditional,
        fir=model.fir,
        fir_kernel=tuple(model.get("fir_kernel", (1, 3, 3, 1))),
        skip_rescale=model.skip_rescale,
        resblock_type=str(model.resblock_type).lower(),
        progressive=str(model.progressive).lower(),
        progressive_input=str(model.progressive_input).lower(),
        progressive_combine=str(model.get("progressive_combine", "sum")).lower(),
        embedding_type=str(model.embedding_type).lower(),
        fourier_scale=float(model.get("fourier_scale", 16.0)),
        init_scale=float(model.init_scale),
        scale_by_sigma=model.scale_by_sigma,
        centered=config.data.centered,
        sigmas=tuple(get_sigmas(config).tolist()) if model.scale_by_sigma else (),
        patch_size=model.get("patch_size", 1),
        dtype=get_dtype(config),
        remat=bool(model.get("remat", False)),
    )
