"""NCSN (v1) on CelebA 64x64.

pds_jax --mode=train --config=configs/ve/ncsn/celeba.py --workdir=runs/ve_ncsn_celeba
Published: no result is known for this file.
One release of score_sde sets training.loss where training.sde is meant; it is training.sde here.
"""

import ml_collections

from configs import default_celeba_configs
from configs.common import finish, ncsn


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_celeba_configs.get_default_configs()
    ncsn(config, n_steps_each=100, snr=0.316, sigma_max=1.0, num_scales=10, ema_rate=0.0)
    return finish(config, arg)
