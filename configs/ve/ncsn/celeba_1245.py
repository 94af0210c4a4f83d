"""NCSN (v1) on CelebA 64x64 with techniques 1, 2, 4 and 5 of NCSNv2.

pds_jax --mode=train --config=configs/ve/ncsn/celeba_1245.py --workdir=runs/ve_ncsn_celeba_1245
Published: no result is known for this file.
"""

import ml_collections

from configs import default_celeba_configs
from configs.common import finish, ncsn


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_celeba_configs.get_default_configs()
    ncsn(config, n_steps_each=5, snr=0.128, num_scales=500, ema_rate=0.999)
    return finish(config, arg)
