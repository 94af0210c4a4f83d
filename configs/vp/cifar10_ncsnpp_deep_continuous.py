"""NCSN++ cont. deep on CIFAR-10, VP SDE.

pds_jax --mode=train --config=configs/vp/cifar10_ncsnpp_deep_continuous.py \\
  --workdir=runs/vp_cifar10_ncsnpp_deep_continuous
Published: no result is known for this file.
"""

import ml_collections

from configs import default_cifar10_configs
from configs.common import finish, ncsnpp_vp, vp


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_cifar10_configs.get_default_configs()
    vp(config)
    config.training.n_iters = 950001
    ncsnpp_vp(config.model, num_res_blocks=8)
    return finish(config, arg)
