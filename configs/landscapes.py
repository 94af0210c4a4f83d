"""NCSN++ cont. on 64x64 crops of 28 photographs, VE SDE; the model `landscapes`.

pds_jax --mode=train --config=configs/landscapes.py --workdir=runs/landscapes
Needs: apt install mate-backgrounds plasma-workspace-wallpapers; pip install scikit-image scikit-learn
"""

import ml_collections

from configs import default_cifar10_configs
from configs.common import finish, ncsnpp, ve


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = default_cifar10_configs.get_default_configs()
    ve(config)
    config.training.update(
        batch_size=32,
        n_iters=17500,
        snapshot_freq=4000,
        snapshot_freq_for_preemption=100,
        log_freq=50,
        n_jitted_steps=1,
        reduce_mean=True,
        loss_weighting="unit",
    )
    # Crops are flipped by the data set itself.
    config.data.update(dataset="landscapes", image_size=64, random_flip=False)
    ncsnpp(
        config.model,
        parametrisation="edm",
        data_mean=0.43,  # over 4000 crops: 0.428, deviation 0.287
        sigma_data=0.29,
        scale_by_sigma=False,
        sigma_max=103.0,  # largest distance between 3000 crops: 103.3
        dropout=0.0,
        nf=32,
        ch_mult=(1, 1, 2, 3),
        num_res_blocks=1,
        attn_resolutions=(8,),
        patch_size=2,  # computes on 32x32 positions
        ema_warmup=True,
    )
    config.eval.update(begin_ckpt=1, end_ckpt=1, batch_size=64, num_samples=512, enable_sampling=True)
    config.optim.update(lr=1e-3, warmup=500, cosine_steps=2000)
    return finish(config, arg)
