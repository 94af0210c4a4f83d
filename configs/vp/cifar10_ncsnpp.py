"""NCSN++ on CIFAR-10 at DDPM's 1000 discrete noise levels (VP).

pds_jax --mode=train --config=configs/vp/cifar10_ncsnpp.py --workdir=runs/vp_cifar10_ncsnpp
Published: no result is known for this file.
"""

import ml_collections

from configs import default_cifar10_configs
from configs.common import ddpm_steps, finish, ncsnpp_vp


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_cifar10_configs.get_default_configs()
    ddpm_steps(config, predictor="reverse_diffusion")
    ncsnpp_vp(config.model)
    return finish(config, arg)
