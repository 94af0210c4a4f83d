"""DDPM++ cont. on CIFAR-10, VP SDE.

pds_jax --mode=train --config=configs/vp/cifar10_ddpmpp_continuous.py --workdir=runs/vp_cifar10_ddpmpp_continuous
Published: FID 2.55, IS 9.58 (Song et al. 2021, table 3);
by the probability-flow ODE FID 3.93 and 3.16 bits/dim (table 2).
"""

import ml_collections

from configs import default_cifar10_configs
from configs.common import ddpmpp, finish, vp


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_cifar10_configs.get_default_configs()
    vp(config)
    ddpmpp(config.model)
    return finish(config, arg)
