"""DDPM++ cont. on CIFAR-10, sub-VP SDE.

pds_jax --mode=train --config=configs/subvp/cifar10_ddpmpp_continuous.py --workdir=runs/subvp_cifar10_ddpmpp_continuous
Published: FID 2.61, IS 9.56 (Song et al. 2021, table 3);
by the probability-flow ODE FID 3.16 and 3.02 bits/dim (table 2).
"""

import ml_collections

from configs import default_cifar10_configs
from configs.common import ddpmpp, finish, vp


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_cifar10_configs.get_default_configs()
    vp(config, sde="subvpsde")
    ddpmpp(config.model)
    return finish(config, arg)
