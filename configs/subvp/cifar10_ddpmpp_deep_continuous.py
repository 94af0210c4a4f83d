"""DDPM++ cont. deep on CIFAR-10, sub-VP SDE.

pds_jax --mode=train --config=configs/subvp/cifar10_ddpmpp_deep_continuous.py \\
  --workdir=runs/subvp_cifar10_ddpmpp_deep_continuous
Published: FID 2.41, IS 9.57 (Song et al. 2021, table 3);
by the probability-flow ODE FID 2.92 and 2.99 bits/dim (table 2).
"""

import ml_collections

from configs import default_cifar10_configs
from configs.common import ddpmpp, finish, vp


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_cifar10_configs.get_default_configs()
    vp(config, sde="subvpsde")
    config.training.n_iters = 950001
    ddpmpp(config.model, num_res_blocks=8)
    return finish(config, arg)
