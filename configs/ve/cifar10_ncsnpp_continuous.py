"""NCSN++ cont. on CIFAR-10, VE SDE.

pds_jax --mode=train --config=configs/ve/cifar10_ncsnpp_continuous.py --workdir=runs/ve_cifar10_ncsnpp_continuous
Published: FID 2.38, IS 9.83 (Song et al. 2021, table 3); 1000 iterations, 2000 NFE.
A training step took 0.20 s on four V100 (32 GB) with n_jitted_steps=5 (README of score_sde_pytorch).
"""

import ml_collections

from configs import default_cifar10_configs
from configs.common import finish, ncsnpp, ve


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_cifar10_configs.get_default_configs()
    ve(config)
    ncsnpp(config.model)
    return finish(config, arg)
