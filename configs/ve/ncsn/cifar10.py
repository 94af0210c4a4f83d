"""NCSN (v1) on CIFAR-10.

pds_jax --mode=train --config=configs/ve/ncsn/cifar10.py --workdir=runs/ve_ncsn_cifar10
Published: FID 25.32, IS 8.87 (Song and Ermon 2019).
"""

import ml_collections

from configs import default_cifar10_configs
from configs.common import finish, ncsn


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_cifar10_configs.get_default_configs()
    ncsn(config, n_steps_each=100, snr=0.316, sigma_max=1.0, num_scales=10, ema_rate=0.0)
    return finish(config, arg)
