"""DDPM's network on CIFAR-10, VP SDE.

pds_jax --mode=train --config=configs/vp/ddpm/cifar10_continuous.py --workdir=runs/vp_ddpm_cifar10_continuous
Published: by the probability-flow ODE FID 3.69 and 3.21 bits/dim (table 2 of Song et al. 2021).
"""

import ml_collections

from configs import default_cifar10_configs
from configs.common import ddpm, finish, vp


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_cifar10_configs.get_default_configs()
    vp(config)
    ddpm(config.model)
    return finish(config, arg)
