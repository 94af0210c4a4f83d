"""Cost of a latent model, estimated from the lowered programs; nothing is compiled and no weights are needed."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pds_jax.latent import layouts
from pds_jax.latent.autoencoder import Autoencoder
from pds_jax.latent.blocks import ATTENTION_BYTES
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
      weights: bytes of the network's and the autoencoder's parameters in float32.
      memory: bytes that an evaluation of two latents, as guidance makes, has live at once beside them.
    """

    network: float
    decoder: float
    image_bytes: int
    weights: int
    memory: int


def of_folder(path: str | os.PathLike[str] | None, peak_bytes: Callable[..., int]) -> Cost:
    """Cost of a pipeline's folder, of which only the configurations are read; of Stable Diffusion 1 without one.

    Args:
      path: the folder, or None.
      peak_bytes: (function, *arguments) -> bytes live at once, ``bench.memory.peak_bytes``.

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

    def inputs(count: int) -> tuple[Any, ...]:
        width_of_text = unet.sizes.context_width
        shapes = [(count, height, width, unet.sizes.in_channels), (count,)]
        shapes += [] if width_of_text is None else [(count, _TOKENS, width_of_text)]
        return tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)

    params = [
        jax.eval_shape(init)
        for init in (functools.partial(init_unet, unet), functools.partial(init_autoencoder, autoencoder))
    ]
    sliced = UNet2D(unet.sizes, ATTENTION_BYTES)
    factor, channels = autoencoder.sizes.factor, autoencoder.sizes.image_channels
    return Cost(
        network=_operations(unet.apply, params[0], *inputs(1)),
        decoder=_operations(functools.partial(autoencoder.apply, method="decode"), params[1], inputs(1)[0]),
        image_bytes=factor * height * factor * width * channels,
        weights=4 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
        memory=peak_bytes(sliced.apply, params[0], *inputs(2)),
    )


def _operations(apply: Any, *arguments: Any) -> float:
    analysis: Any = jax.jit(apply).lower(*arguments).cost_analysis()
    return float(analysis["flops"])
