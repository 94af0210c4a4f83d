"""NCSN++ cont. on FFHQ 1024x1024, VE SDE.

pds_jax --mode=train --config=configs/ve/ffhq_ncsnpp_continuous.py --workdir=runs/ve_ffhq_ncsnpp_continuous
Published: samples only, no FID.
Training reads the data set's own r10 TFRecords: --config.data.tfrecords_path=FILE.
The PDS release's file of this name has the same network and sampler, smaller runs, and an unused field for RePaint.
"""

import ml_collections

from configs import default_1024_configs
from configs.common import finish


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_1024_configs.get_default_configs()
    config.training.reduce_mean = True
    config.data.dataset = "FFHQ"
    return finish(config, arg)
