"""DDPM on CIFAR-10.

pds_jax --mode=train --config=configs/vp/ddpm/cifar10.py --workdir=runs/vp_ddpm_cifar10
Published: FID 3.24, 3.28 bits/dim, FID 3.37 by the probability-flow ODE (README of score_sde_pytorch); FID 3.17,
IS 9.46 (Ho et al. 2020).
"""

import ml_collections

from configs import default_cifar10_configs
from configs.common import ddpm, ddpm_steps, finish


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_cifar10_configs.get_default_configs()
    ddpm_steps(config)
    ddpm(config.model)
    return finish(config, arg)
