"""Defaults of score_sde's two 1024x1024 configurations.

The original files lack training.n_jitted_steps and four fields of eval, which its program reads; they are set as for
LSUN here.
"""

import ml_collections

from configs import default_lsun_configs
from configs.common import ncsnpp, ve


def get_default_configs() -> ml_collections.ConfigDict:
    config = default_lsun_configs.get_default_configs()
    ve(config, snr=0.15)
    config.training.batch_size = 8
    config.eval.update(batch_size=1024, begin_ckpt=1)
    config.data.update(image_size=1024, tfrecords_path="")
    ncsnpp(
        config.model,
        sigma_max=1348.0,
        ema_rate=0.9999,
        nf=16,
        ch_mult=(1, 2, 4, 8, 16, 32, 32, 32),
        num_res_blocks=1,
        progressive="output_skip",
        progressive_input="input_skip",
    )
    config.optim.amsgrad = False
    return config
