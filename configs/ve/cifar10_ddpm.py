"""DDPM's network on CIFAR-10, SMLD.

pds_jax --mode=train --config=configs/ve/cifar10_ddpm.py --workdir=runs/ve_cifar10_ddpm
Published: no result is known for this file.
"""

import ml_collections

from configs import default_cifar10_configs
from configs.common import ddpm, finish, smld


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_cifar10_configs.get_default_configs()
    smld(config)
    ddpm(config.model, scale_by_sigma=True, ema_rate=0.999, conv_size=3)
    return finish(config, arg)
