"""NCSNv2 on LSUN bedroom 128x128.

pds_jax --mode=train --config=configs/ve/ncsnv2/bedroom.py --workdir=runs/ve_ncsnv2_bedroom
Published: no result is known for this file.
score_sde's file misspells training.continuous, which leaves it on and stops the run; it is off here, as meant.
"""

import ml_collections

from configs import default_lsun_configs
from configs.common import finish, ncsn_optim, refinenet, smld


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_lsun_configs.get_default_configs()
    config.training.batch_size = 128
    config.data.update(category="bedroom", image_size=128)
    smld(config, predictor="none", corrector="ald", n_steps_each=3, snr=0.095)
    refinenet(config.model, name="ncsnv2_128", sigma_max=190.0, num_scales=1086, ema_rate=0.9999)
    ncsn_optim(config.optim, lr=1e-4)
    return finish(config, arg)
