"""DDPM on CIFAR-10 without time conditioning (technique 3 of NCSNv2).

pds_jax --mode=train --config=configs/vp/ddpm/cifar10_unconditional.py --workdir=runs/vp_ddpm_cifar10_unconditional
Published: no result is known for this file.
"""

import ml_collections

from configs import default_cifar10_configs
from configs.common import ddpm, ddpm_steps, finish


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_cifar10_configs.get_default_configs()
    ddpm_steps(config)
    ddpm(config.model, conditional=False)
    return finish(config, arg)
