"""Defaults of score_sde's CIFAR-10 configurations, and of everything else here."""

import ml_collections

from configs.common import pds_sections


def get_default_configs() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.training = dict(
        batch_size=128,
        n_iters=1300001,
        snapshot_freq=50000,
        log_freq=50,
        eval_freq=100,
        snapshot_freq_for_preemption=10000,
        snapshot_sampling=True,
        likelihood_weighting=False,
        continuous=True,
        n_jitted_steps=5,
        reduce_mean=False,
    )
    config.sampling = dict(n_steps_each=1, noise_removal=True, probability_flow=False, snr=0.16)
    config.eval = dict(
        begin_ckpt=9,
        end_ckpt=26,
        batch_size=1024,
        enable_sampling=False,
        num_samples=50000,
        enable_loss=True,
        enable_bpd=False,
        bpd_dataset="test",
    )
    config.data = dict(
        dataset="CIFAR10",
        image_size=32,
        random_flip=True,
        centered=False,
        uniform_dequantization=False,
        num_channels=3,
        # For your own image files, if data.dataset is a path (docs/files.md):
        resize=False,
        convert_images=False,
        range=(),  # (lo, hi) of floating-point arrays; () is (0, 1)
    )
    config.model = dict(
        sigma_min=0.01,
        sigma_max=50.0,
        num_scales=1000,
        beta_min=0.1,
        beta_max=20.0,
        dropout=0.1,
        embedding_type="fourier",
    )
    config.optim = dict(
        weight_decay=0.0, optimizer="Adam", lr=2e-4, beta1=0.9, eps=1e-8, warmup=5000, grad_clip=1.0
    )  # fmt: skip
    config.seed = 42
    pds_sections(config)
    return config
