"""EDM on FFHQ 64x64: SongUNet as DDPM++ under EDMPrecond, edm-ffhq-64x64-uncond-vp.pkl.

pds_jax --mode=sample --config=configs/edm/ffhq64.py --checkpoint=edm-ffhq-64x64-uncond-vp.pkl \
  --workdir=runs/edm_ffhq64 --seeds=0-63
Published: FID 2.39 at 79 NFE, Heun on EDM's grid with 40 steps (example.py of NVlabs/edm), reference
ffhq-64x64.npz there. The snapshot carries the same configuration; --config may be left out.
"""

import ml_collections

from configs.pretrained import pretrained
from pds_jax.convert.edm import config_from_arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arguments = {
        "img_resolution": 64,
        "in_channels": 3,
        "out_channels": 3,
        "augment_dim": 9,
        "model_channels": 128,
        "channel_mult": [1, 2, 2, 2],
        "num_blocks": 4,
        "attn_resolutions": [16],
        "dropout": 0.05,
        "embedding_type": "positional",
        "encoder_type": "standard",
        "decoder_type": "standard",
        "channel_mult_noise": 1,
        "resample_filter": [1, 1],
    }
    return pretrained(config_from_arguments("EDMPrecond", "SongUNet", arguments), arg, "ffhq")
