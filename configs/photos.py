"""NCSN++ cont. on 16x16 crops of photographs, VE SDE; the included model `photos`.

pds_jax --mode=train --config=configs/photos.py --workdir=runs/photos
See checkpoints/photos/README.md for steps, hours and curves.
"""

import ml_collections

from configs import default_cifar10_configs
from configs.common import finish, ncsnpp, ve


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_cifar10_configs.get_default_configs()
    ve(config)
    config.training.update(
        batch_size=16,
        n_iters=13000,
        snapshot_freq=4000,
        snapshot_freq_for_preemption=250,
        log_freq=100,
        n_jitted_steps=1,
        reduce_mean=True,
        loss_weighting="unit",
    )
    # Crops are flipped by the data set itself.
    config.data.update(dataset="photos", image_size=16, random_flip=False)
    ncsnpp(
        config.model,
        parametrisation="wiener",
        scale_by_sigma=False,
        sigma_max=27.0,  # largest distance between 5000 crops: 26.5
        dropout=0.0,
        nf=16,
        ch_mult=(1, 2, 4),
        num_res_blocks=1,
        attn_resolutions=(8,),
        ema_warmup=True,
    )
    config.eval.update(begin_ckpt=1, end_ckpt=4, batch_size=256, num_samples=1024, enable_sampling=True)
    config.optim.update(lr=1e-3, warmup=500, cosine_steps=2000)
    return finish(config, arg)
