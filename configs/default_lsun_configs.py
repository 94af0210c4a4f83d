"""Defaults of score_sde's LSUN 256x256 configurations.

The PDS release's file of this name differs only in the sizes of its authors' runs: batch 28, twice the iterations,
evaluation of ten images.
"""

import ml_collections

from configs import default_cifar10_configs


def get_default_configs() -> ml_collections.ConfigDict:
    config = default_cifar10_configs.get_default_configs()
    config.training.update(batch_size=64, n_iters=2400001, snapshot_freq_for_preemption=5000)
    config.sampling.snr = 0.075
    config.eval.update(begin_ckpt=50, end_ckpt=96, batch_size=512, enable_sampling=True)
    config.data.update(dataset="LSUN", image_size=256)
    config.model.update(sigma_max=378.0, num_scales=2000, dropout=0.0)
    return config
