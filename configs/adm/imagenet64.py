"""ADM on ImageNet 64x64, class-conditional: 64x64_diffusion.pt of guided-diffusion.

pds_jax --mode=sample --config=configs/adm/imagenet64.py --checkpoint=64x64_diffusion.pt \
  --workdir=runs/adm_imagenet64 --seeds=0-63 --labels=random
Published: FID 2.07 at 250 NFE (README of openai/guided-diffusion; steps in its sampling flags); 1.55 with EDM's
stochastic sampler (Karras et al. 2022, abstract). The noise schedule is cosine, so it is sampled as VE.
"""

import ml_collections

from configs.pretrained import guided_unet, pretrained
from pds_jax.convert.adm import config_from_settings


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    settings = guided_unet(
        64,
        model_channels=192,
        num_res_blocks=3,
        channel_mult=[1, 2, 3, 4],
        num_head_channels=64,
        use_new_attention_order=True,
        dropout=0.1,
    )
    return pretrained(config_from_settings(settings, noise_schedule="cosine"), arg, "imagenet")
