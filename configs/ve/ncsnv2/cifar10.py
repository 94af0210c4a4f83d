"""NCSNv2 on CIFAR-10.

pds_jax --mode=train --config=configs/ve/ncsnv2/cifar10.py --workdir=runs/ve_ncsnv2_cifar10
Published: FID 10.87, IS 8.40 (Song and Ermon 2020).
"""

import ml_collections

from configs import default_cifar10_configs
from configs.common import finish, ncsn_optim, refinenet, smld


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_cifar10_configs.get_default_configs()
    smld(config, predictor="none", corrector="ald", n_steps_each=5, snr=0.176)
    refinenet(config.model, num_scales=232)
    ncsn_optim(config.optim, lr=1e-4)
    return finish(config, arg)
