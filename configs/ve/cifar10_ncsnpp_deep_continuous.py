"""NCSN++ cont. deep on CIFAR-10, VE SDE: twice the residual blocks.

pds_jax --mode=train --config=configs/ve/cifar10_ncsnpp_deep_continuous.py \\
  --workdir=runs/ve_cifar10_ncsnpp_deep_continuous
Published: FID 2.20, IS 9.89 (Song et al. 2021, table 3); 1000 iterations, 2000 NFE.
PDS: best FID on CIFAR-10 1.99 (Ma et al. 2025, arXiv 2302.06504, abstract; setting not stated there).
"""

import ml_collections

from configs import default_cifar10_configs
from configs.common import finish, ncsnpp, ve


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_cifar10_configs.get_default_configs()
    ve(config)
    config.training.n_iters = 950001
    ncsnpp(config.model, num_res_blocks=8)
    return finish(config, arg)
