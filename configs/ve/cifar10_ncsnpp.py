"""NCSN++ on CIFAR-10, SMLD (VE at 1000 discrete noise levels).

pds_jax --mode=train --config=configs/ve/cifar10_ncsnpp.py --workdir=runs/ve_cifar10_ncsnpp
Published: FID 2.45, IS 9.73 (Song et al. 2021, table 3).
"""

import ml_collections

from configs import default_cifar10_configs
from configs.common import finish, ncsnpp, smld


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_cifar10_configs.get_default_configs()
    smld(config)
    ncsnpp(config.model, embedding_type="positional")
    return finish(config, arg)
