"""DDPM on LSUN bedroom 256x256.

pds_jax --mode=train --config=configs/vp/ddpm/bedroom.py --workdir=runs/vp_ddpm_bedroom
Published: FID 6.36 (Ho et al. 2020, the smaller network).
"""

import ml_collections

from configs import default_lsun_configs
from configs.common import ddpm, ddpm_steps, finish


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_lsun_configs.get_default_configs()
    ddpm_steps(config)
    config.data.category = "bedroom"
    ddpm(config.model, num_scales=1000, ch_mult=(1, 1, 2, 2, 4, 4))
    config.optim.lr = 2e-5
    return finish(config, arg)
