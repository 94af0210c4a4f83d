"""DDPM++ cont. deep on CIFAR-10, VP SDE.

pds_jax --mode=train --config=configs/vp/cifar10_ddpmpp_deep_continuous.py \\
  --workdir=runs/vp_cifar10_ddpmpp_deep_continuous
Published: FID 2.41, IS 9.68 (Song et al. 2021, table 3);
by the probability-flow ODE FID 3.08 and 3.13 bits/dim (table 2).
"""

import ml_collections

from configs import default_cifar10_configs
from configs.common import ddpmpp, finish, vp


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_cifar10_configs.get_default_configs()
    vp(config)
    config.training.n_iters = 950001
    ddpmpp(config.model, num_res_blocks=8)
    return finish(config, arg)
