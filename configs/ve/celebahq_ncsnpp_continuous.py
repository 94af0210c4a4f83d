"""NCSN++ cont. on CelebA-HQ 1024x1024, VE SDE.

pds_jax --mode=train --config=configs/ve/celebahq_ncsnpp_continuous.py --workdir=runs/ve_celebahq_ncsnpp_continuous
Published: samples only, no FID.
Training reads the data set's own r10 TFRecords: --config.data.tfrecords_path=FILE.
"""

import ml_collections

from configs import default_1024_configs
from configs.common import finish


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_1024_configs.get_default_configs()
    config.data.dataset = "CelebAHQ"
    return finish(config, arg)
