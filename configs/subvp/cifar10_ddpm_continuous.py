"""DDPM's network on CIFAR-10, sub-VP SDE.

pds_jax --mode=train --config=configs/subvp/cifar10_ddpm_continuous.py --workdir=runs/subvp_cifar10_ddpm_continuous
Published: by the probability-flow ODE FID 3.56 and 3.05 bits/dim (table 2 of Song et al. 2021).
"""

import ml_collections

from configs import default_cifar10_configs
from configs.common import ddpm, finish, vp


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_cifar10_configs.get_default_configs()
    vp(config, sde="subvpsde")
    ddpm(config.model)
    return finish(config, arg)
