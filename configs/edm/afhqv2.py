"""EDM on AFHQv2 64x64: SongUNet as DDPM++ under EDMPrecond, edm-afhqv2-64x64-uncond-vp.pkl.

pds_jax --mode=sample --config=configs/edm/afhqv2.py --checkpoint=edm-afhqv2-64x64-uncond-vp.pkl \
  --workdir=runs/edm_afhqv2 --seeds=0-63
Published: FID 1.96 at 79 NFE, Heun on EDM's grid with 40 steps (example.py of NVlabs/edm), reference
afhqv2-64x64.npz there. The snapshot carries the same configuration; --config may be left out.
"""

import ml_collections

from configs.pretrained import ddpmpp64, pretrained
from pds_jax.convert.edm import config_from_arguments

NETWORK = ("SongUNet", ddpmpp64(dropout=0.25))


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return pretrained(config_from_arguments("EDMPrecond", *NETWORK), arg, "afhqv2")
