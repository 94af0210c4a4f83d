"""Defaults of score_sde's CelebA 64x64 configurations."""

import ml_collections

from configs import default_cifar10_configs


def get_default_configs() -> ml_collections.ConfigDict:
    config = default_cifar10_configs.get_default_configs()
    config.sampling.snr = 0.17
    config.eval.update(begin_ckpt=1, enable_sampling=True)
    config.data.update(dataset="CELEBA", image_size=64)
    config.model.sigma_max = 90.0
    return config
