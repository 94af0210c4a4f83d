"""ADM on ImageNet 128x128, class-conditional: 128x128_diffusion.pt of guided-diffusion.

pds_jax --mode=sample --config=configs/adm/imagenet128.py --checkpoint=128x128_diffusion.pt \
  --workdir=runs/adm_imagenet128 --seeds=0-15 --labels=random
Published: FID 2.97 at 250 NFE with its classifier at scale 0.5 (README of openai/guided-diffusion).
"""

import ml_collections

from configs.pretrained import guided_unet, pretrained
from pds_jax.convert.adm import config_from_settings


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    settings = guided_unet(128, model_channels=256, num_res_blocks=2, channel_mult=[1, 1, 2, 3, 4], num_heads=4)
    return pretrained(config_from_settings(settings), arg, "imagenet")
