"""NCSN++ cont. on CelebA-HQ 256x256, VE SDE.

pds_jax --mode=train --config=configs/ve/celebahq_256_ncsnpp_continuous.py \\
  --workdir=runs/ve_celebahq_256_ncsnpp_continuous
Published: samples only, no FID.
Training reads the data set's own r08 TFRecords: --config.data.tfrecords_path=FILE.
"""

import ml_collections

from configs import default_lsun_configs
from configs.common import finish, ncsnpp_256, ve


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_lsun_configs.get_default_configs()
    ve(config)
    config.data.update(dataset="CelebAHQ", tfrecords_path="")
    ncsnpp_256(config.model, sigma_max=348.0)
    return finish(config, arg)
