"""NCSNv2 on CelebA 64x64.

pds_jax --mode=train --config=configs/ve/ncsnv2/celeba.py --workdir=runs/ve_ncsnv2_celeba
Published: no result is known for this file.
"""

import ml_collections

from configs import default_celeba_configs
from configs.common import finish, ncsn_optim, refinenet, smld


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_celeba_configs.get_default_configs()
    smld(config, predictor="none", corrector="ald", n_steps_each=5, snr=0.128)
    refinenet(config.model, num_scales=500)
    ncsn_optim(config.optim, lr=1e-4)
    return finish(config, arg)
