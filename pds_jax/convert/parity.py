"""Compare networks with those of other programs, on the same weights and inputs."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import jax
import numpy as np

from pds_jax.convert import diffusers, diffusers_weights
from pds_jax.convert.tree import ConversionError
from pds_jax.models import create_model
from pds_jax.models.utils import image_size


def with_diffusers(
    path: str | os.PathLike[str], config: Any, params: Any, batch: int = 2, use_ema: bool = True
) -> float:
    """Largest difference between ``UNet2DModel`` and our NCSN++, max |a - b| / max |b| of the worst sample.

    Args:
      path: the diffusers folder.
      config: our config.
      params: the parameters converted from it.
      batch: number of samples, at noise levels from σ_min to σ_max.
      use_ema: as the parameters were converted.

    Returns:
      The relative difference.

    Raises:
      ConversionError: PyTorch or diffusers is not installed, or diffusers cannot load the folder.
    """
    try:
        import torch
        from diffusers import UNet2DModel
    except ImportError as error:
        raise ConversionError("a parity forward needs PyTorch and diffusers: pip install 'pds_jax[convert]'") from error
    rng = np.random.default_rng(0)
    sigma = np.geomspace(config.model.sigma_min, config.model.sigma_max, batch).astype(np.float32)
    x = rng.uniform(size=(batch, *image_size(config), 3)) + sigma[:, None, None, None] * rng.normal(
        size=(batch, *image_size(config), 3)
    )
    x = x.astype(np.float32)
    try:
        folder = diffusers.unet_folder(path, use_ema) or pathlib.Path(path)
        variant = diffusers_weights.variant_of(folder, use_ema)
        unet = UNet2DModel.from_pretrained(str(folder), variant=variant, low_cpu_mem_usage=False).eval()
    except Exception as error:  # diffusers raises what its many parts raise
        raise ConversionError(f"diffusers cannot load {path}: {error}") from error
    with torch.no_grad():
        theirs = unet(torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.from_numpy(sigma)).sample.numpy()
    ours = jax.jit(create_model(config).apply, static_argnames="train")({"params": params}, x, sigma, train=False)
    difference = np.abs(np.asarray(ours) - theirs.transpose(0, 2, 3, 1)).max(axis=(1, 2, 3))
    return float((difference / np.abs(theirs).max(axis=(1, 2, 3))).max())
