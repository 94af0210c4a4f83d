"""ADM's classifier of noisy ImageNet images at 256x256: 256x256_classifier.pt of guided-diffusion.

pds_jax --mode=sample --config=configs/adm/imagenet256.py --checkpoint=256x256_diffusion.pt --labels=random \
  --classifier=256x256_classifier.pt --classifier_config=configs/adm/classifier256.py --workdir=runs/adm_guided
64x64_classifier.pt takes :image_size=64,num_res_blocks=4,ch_mult=1:2:3:4,noise_schedule=cosine after the file, and
128x128_classifier.pt :image_size=128,ch_mult=1:1:2:3:4.
Published: guides configs/adm/imagenet256.py to FID 4.59 (README of openai/guided-diffusion).
"""

import ml_collections

from configs.pretrained import pretrained
from pds_jax.convert.adm import config_from_settings


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    settings = {
        "image_size": 256,
        "in_channels": 3,
        "out_channels": 1000,
        "model_channels": 128,
        "num_res_blocks": 2,
        "channel_mult": [1, 1, 2, 2, 4, 4],
        "attention_resolutions": [8, 16, 32],
        "num_head_channels": 64,
        "resblock_updown": True,
        "use_scale_shift_norm": True,
        "pool": "attention",
    }
    return pretrained(config_from_settings(settings, classifier=True), arg, "imagenet")
