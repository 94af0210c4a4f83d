"""NCSN++ cont. on Fashion-MNIST padded to 32x32, VE SDE; the included model `fashion`.

pds_jax --mode=train --config=configs/fashion.py --workdir=runs/fashion
See checkpoints/fashion/README.md for steps, hours and curves.
"""

import ml_collections

from configs import default_cifar10_configs
from configs.common import finish, ncsnpp, ve


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_cifar10_configs.get_default_configs()
    ve(config)
    config.training.update(
        batch_size=64,
        n_iters=9400,
        snapshot_freq=4000,
        snapshot_freq_for_preemption=200,
        log_freq=50,
        n_jitted_steps=1,
        reduce_mean=True,
        loss_weighting="unit",
    )
    config.data.update(dataset="fashion", image_size=32, num_channels=1, random_flip=False)
    ncsnpp(
        config.model,
        parametrisation="edm",
        data_mean=0.22,  # over all training pixels: 0.2190, deviation 0.3318
        sigma_data=0.33,
        scale_by_sigma=False,
        sigma_max=20.9,  # largest distance between 5000 training images: 20.93
        dropout=0.0,
        nf=32,
        ch_mult=(1, 1, 2, 3),
        num_res_blocks=1,
        attn_resolutions=(8,),
        ema_warmup=True,
    )
    config.eval.update(begin_ckpt=1, end_ckpt=4, batch_size=256, num_samples=1024, enable_sampling=True)
    config.optim.update(lr=1e-3, warmup=500, cosine_steps=2000)
    return finish(config, arg)
