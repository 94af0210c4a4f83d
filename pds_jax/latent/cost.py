"""What a latent model costs, by the lowered programs; nothing is compiled and no weights are needed."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from pds_jax.latent import layouts
from pds_jax.latent.autoencoder import Autoencoder
from pds_jax.latent.folder import init_autoencoder, init_unet, latent_size
from pds_jax.latent.unet2d import UNet2D

# Stable Diffusion 1: the network has the constructor's defaults but for the width of the text encoder.
UNET = {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768, "sample_size": 64}
AUTOENCODER = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}
_TOKENS = 77
_NO_LIMIT = 1 << 60


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one image.

    Attributes:
      network: floating-point operations of one evaluation of the network.
      decoder: operations of decoding.
      image_bytes: bytes of the pixels.
    """

    network: float
    decoder: float
    image_bytes: int


def of_folder(path: str | os.PathLike[str] | None = None) -> Cost:
    """Cost of a pipeline's folder, of which only the configurations are read; of Stable Diffusion 1 without one.

    Raises:
      PdsError: a configuration that is missing or not supported.
    """
    unet_fields: dict[str, Any] = UNET
    vae_fields: dict[str, Any] = AUTOENCODER
    if path is not None:
        folder = pathlib.Path(path)
        unet_fields, _ = layouts.read_config(folder / "unet")
        vae_fields, _ = layouts.read_config(folder / ("vae" if (folder / "vae").is_dir() else "vqvae"))
    # Attention in one piece: of a loop only one turn would be counted.
    unet = UNet2D(layouts.unet_sizes(unet_fields, str(path)), _NO_LIMIT)
    autoencoder = Autoencoder(layouts.autoencoder_sizes(vae_fields, str(path)), _NO_LIMIT)
    height, width = latent_size(unet_fields.get("sample_size")) or (64, 64)
    latents = jax.ShapeDtypeStruct((1, height, width, unet.sizes.in_channels), jnp.float32)
    context = None
    if unet.sizes.context_width is not None:
        context = jax.ShapeDtypeStruct((1, _TOKENS, unet.sizes.context_width), jnp.float32)
    time = jax.ShapeDtypeStruct((1,), jnp.float32)
    factor, channels = autoencoder.sizes.factor, autoencoder.sizes.image_channels
    return Cost(
        network=_operations(unet.apply, functools.partial(init_unet, unet), latents, time, context),
        decoder=_operations(
            functools.partial(autoencoder.apply, method="decode"),
            functools.partial(init_autoencoder, autoencoder),
            latents,
        ),
        image_bytes=factor * height * factor * width * channels,
    )


def _operations(apply: Any, init: Any, *inputs: Any) -> float:
    analysis: Any = jax.jit(apply).lower(jax.eval_shape(init), *inputs).cost_analysis()
    return float(analysis["flops"])
