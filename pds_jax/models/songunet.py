"""SongUNet of EDM (Karras et al. 2022): the arithmetic of NCSN++ and DDPM++ with labels and a raw noise label.

Blocks, resampling, attention and pyramids are those of ``ncsnpp``. The embedding differs: it takes the noise label
c_noise as it is, adds class and augmentation labels before its two layers, and has widths of its own.

Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", NeurIPS 2022, appendix F.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from pds_jax.models import layerspp
from pds_jax.models.labels import class_rows, label_rows
from pds_jax.models.layers import default_init, get_act, get_timestep_embedding
from pds_jax.models.ncsnpp import NCSNpp
from pds_jax.models.utils import check_divisible, get_dtype, image_size, register_model
from pds_jax.types import Array


class SongUNet(NCSNpp):
    """SongUNet; fields as in :class:`NCSNpp`, and those of EDM's constructor that it lacks.

    ``channel_mult_noise`` and ``channel_mult_emb`` are widths of the noise embedding over nf. ``out_channels`` is 0
    where the output has the channels of the input.
    """

    label_dim: int = 0
    augment_dim: int = 0
    label_dropout: float = 0.0
    channel_mult_noise: int = 1
    channel_mult_emb: int = 4
    out_channels: int = 0
    scale_by_sigma: bool = False
    centered: bool = True

    @nn.compact
    def __call__(
        self,
        x: Array,
        time_cond: Array,
        train: bool = True,
        labels: Array | None = None,
        augment_labels: Array | None = None,
    ) -> Array:
        """F(x; c_noise, labels), float32 (B, H, W, C'), of x (B, H, W, C) and c_noise (B,).

        ``labels`` (B, label_dim) are one-hot or soft, None is the zero vector; ``augment_labels`` (B, augment_dim) of
        the augmentations, None outside training. In training, dropout and label dropout need a ``dropout`` rng.

        Raises PdsError if H or W cannot be halved often enough, or for labels of another shape.
        """
        check_divisible(x.shape[1:3], len(self.ch_mult))
        block, attend, resample = self._parts()
        temb = self._embed_labels(time_cond, labels, augment_labels, train)
        channels = self.out_channels or x.shape[-1]
        skips = self._encode(x.astype(self.dtype), temb, train, block, attend, resample)
        h = block()(skips[-1], temb, train)
        h = attend()(h)
        h = block()(h, temb, train)
        return self._decode(h, skips, channels, temb, train, block, attend, resample).astype(jnp.float32)

    def _embed_labels(self, noise: Array, labels: Array | None, augment: Array | None, train: bool) -> Array:
        """(B, channel_mult_emb nf), before the activation that every block applies to it."""
        width, batch = self.nf * self.channel_mult_noise, noise.shape[0]
        if self.embedding_type == "fourier":
            temb = layerspp.GaussianFourierProjection(width // 2, self.fourier_scale)(noise.astype(jnp.float32))
        else:
            temb = get_timestep_embedding(noise, width)
        dense = partial(nn.Dense, kernel_init=default_init(), dtype=self.dtype)
        if self.label_dim:
            rows = class_rows(self, labels, batch, train) * math.sqrt(self.label_dim)
            temb = temb + dense(width, name="map_label")(rows).astype(jnp.float32)
        if self.augment_dim:
            rows = label_rows(augment, batch, self.augment_dim, "augment_labels")
            temb = temb + dense(width, use_bias=False, name="map_augment")(rows).astype(jnp.float32)
        temb = dense(self.nf * self.channel_mult_emb)(temb)
        return dense(self.nf * self.channel_mult_emb)(get_act(self.nonlinearity)(temb))


@register_model("songunet")
def from_config(config: Any) -> SongUNet:
    """SongUNet from a config; ``model.label_dim`` and related fields have the names of EDM's constructor.

    Raises PdsError for an unknown option or an image size that does not divide.
    """
    model = config.model
    check_divisible(image_size(config), len(model.ch_mult))
    return SongUNet(
        nf=model.nf,
        ch_mult=tuple(model.ch_mult),
        num_res_blocks=model.num_res_blocks,
        attn_resolutions=tuple(model.attn_resolutions),
        dropout=model.dropout,
        fir=True,
        fir_kernel=tuple(model.fir_kernel),
        resblock_type="biggan",
        progressive=model.progressive,
        progressive_input=model.progressive_input,
        embedding_type=model.embedding_type,
        label_dim=model.label_dim,
        augment_dim=model.augment_dim,
        label_dropout=model.label_dropout,
        channel_mult_noise=model.channel_mult_noise,
        channel_mult_emb=model.channel_mult_emb,
        out_channels=model.out_channels,
        dtype=get_dtype(config),
        remat=bool(model.get("remat", False)),
    )
