"""DDPM++ on CIFAR-10 at DDPM's 1000 discrete noise levels (VP).

pds_jax --mode=train --config=configs/vp/cifar10_ddpmpp.py --workdir=runs/vp_cifar10_ddpmpp
Published: FID 2.78, IS 9.64 (Song et al. 2021, table 3).
"""

import ml_collections

from configs import default_cifar10_configs
from configs.common import ddpm_steps, ddpmpp, finish


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_cifar10_configs.get_default_configs()
    ddpm_steps(config)
    ddpmpp(config.model)
    return finish(config, arg)
