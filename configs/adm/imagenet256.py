"""ADM on ImageNet 256x256, class-conditional: 256x256_diffusion.pt of guided-diffusion.

pds_jax --mode=sample --config=configs/adm/imagenet256.py --checkpoint=256x256_diffusion.pt \
  --workdir=runs/adm_imagenet256 --seeds=0-15 --labels=random --precision=bfloat16
Published: FID 4.59 at 250 NFE with its classifier at scale 1 (README of openai/guided-diffusion).
The unconditional 256x256_diffusion_uncond.pt has --config=configs/adm/imagenet256.py:label_dim=0.
"""

import ml_collections

from configs.pretrained import guided_unet, pretrained
from pds_jax.convert.adm import config_from_settings


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    settings = guided_unet(
        256, model_channels=256, num_res_blocks=2, channel_mult=[1, 1, 2, 2, 4, 4], num_head_channels=64
    )
    return pretrained(config_from_settings(settings), arg, "imagenet")
