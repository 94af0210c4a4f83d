"""DDPM on CelebA-HQ 256x256.

pds_jax --mode=train --config=configs/vp/ddpm/celebahq.py --workdir=runs/vp_ddpm_celebahq
Published: samples only, no FID.
Training reads TFRecords: --config.data.tfrecords_path=FILE.
"""

import ml_collections

from configs import default_lsun_configs
from configs.common import ddpm, ddpm_steps, finish


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_lsun_configs.get_default_configs()
    ddpm_steps(config)
    config.data.update(dataset="CelebAHQ", tfrecords_path="")
    ddpm(config.model, num_scales=1000, ch_mult=(1, 1, 2, 2, 4, 4))
    config.optim.lr = 2e-5
    return finish(config, arg)
