"""NCSN++ cont. on scikit-learn's 8x8 handwritten digits, VE SDE; the included model `digits`.

pds_jax --mode=train --config=configs/digits.py --workdir=runs/digits
See checkpoints/digits/README.md for steps, minutes and curves.
"""

import ml_collections

from configs import default_cifar10_configs
from configs.common import finish, ncsnpp, ve


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_cifar10_configs.get_default_configs()
    ve(config)
    config.training.update(
        batch_size=32,
        n_iters=8000,
        snapshot_freq=4000,
        snapshot_freq_for_preemption=250,
        log_freq=100,
        n_jitted_steps=1,
        reduce_mean=True,
        loss_weighting="unit",
    )
    config.data.update(dataset="digits", image_size=8, num_channels=1, random_flip=False)
    ncsnpp(
        config.model,
        parametrisation="wiener",
        scale_by_sigma=False,
        sigma_max=4.8,  # largest distance between the 1500 training images
        dropout=0.0,
        nf=24,
        ch_mult=(1, 2),
        num_res_blocks=1,
        attn_resolutions=(4,),
        ema_warmup=True,
    )
    config.eval.update(begin_ckpt=1, end_ckpt=2, batch_size=256, num_samples=1024, enable_sampling=True)
    config.optim.update(lr=1e-3, warmup=500, cosine_steps=2000)
    return finish(config, arg)
