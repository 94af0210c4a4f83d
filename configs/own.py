"""NCSN++ cont. on your own images, VE SDE; docs/training.md says what to set after the colon.

pds_jax --mode=train --workdir=runs/own \\
  --config=configs/own.py:dataset=my_images,image_size=32,sigma_max=30,data_mean=0.45,sigma_data=0.25
scripts/train_own.sh measures the last three and runs the training.
"""

import ml_collections

from configs import default_cifar10_configs
from configs.common import finish, ncsnpp, ve


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_cifar10_configs.get_default_configs()
    ve(config)
    config.training.update(
        batch_size=32,
        n_iters=20000,
        snapshot_freq=5000,
        snapshot_freq_for_preemption=200,
        log_freq=50,
        n_jitted_steps=1,
        reduce_mean=True,
        loss_weighting="unit",
    )
    config.data.update(dataset="", image_size=32, num_channels=3, random_flip=True, resize=True, convert_images=True)
    ncsnpp(
        config.model,
        parametrisation="edm",
        data_mean=0.5,
        sigma_data=0.25,
        scale_by_sigma=False,
        sigma_max=30.0,
        dropout=0.0,
        nf=32,
        ch_mult=(1, 1, 2, 3),
        num_res_blocks=1,
        attn_resolutions=(8,),
        ema_warmup=True,
    )
    config.eval.update(begin_ckpt=1, end_ckpt=99, batch_size=64, num_samples=1024, enable_sampling=True)
    config.optim.update(lr=1e-3, warmup=500, cosine_steps=4000)
    return finish(config, arg)
