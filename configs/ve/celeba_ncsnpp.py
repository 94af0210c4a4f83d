"""NCSN++ on CelebA 64x64, SMLD.

pds_jax --mode=train --config=configs/ve/celeba_ncsnpp.py --workdir=runs/ve_celeba_ncsnpp
Published: no result is known for this file.
"""

import ml_collections

from configs import default_celeba_configs
from configs.common import finish, ncsnpp, smld


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_celeba_configs.get_default_configs()
    smld(config)
    # score_sde has sigma_begin in this one file and reads it nowhere.
    ncsnpp(config.model, embedding_type="positional", sigma_begin=90)
    return finish(config, arg)
