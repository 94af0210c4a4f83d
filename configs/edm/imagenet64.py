"""EDM on ImageNet 64x64, class-conditional: DhariwalUNet under EDMPrecond, edm-imagenet-64x64-cond-adm.pkl.

pds_jax --mode=sample --config=configs/edm/imagenet64.py --checkpoint=edm-imagenet-64x64-cond-adm.pkl \
  --workdir=runs/edm_imagenet64 --seeds=0-63 --labels=random
Published: FID 1.36 at 511 NFE, EDM's stochastic sampler (Karras et al. 2022, abstract; NFE in README and example.py of
NVlabs/edm), reference imagenet-64x64.npz there. The snapshot carries the same configuration; --config may be left out.
"""

import ml_collections

from configs.pretrained import pretrained
from pds_jax.convert.edm import config_from_arguments

NETWORK = (
    "DhariwalUNet",
    {
        "img_resolution": 64,
        "in_channels": 3,
        "out_channels": 3,
        "label_dim": 1000,
        "model_channels": 192,
        "channel_mult": [1, 2, 3, 4],
        "num_blocks": 3,
        "attn_resolutions": [32, 16, 8],
        "dropout": 0.1,
    },
)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return pretrained(config_from_arguments("EDMPrecond", *NETWORK), arg, "imagenet")
