"""Configurations of published networks of other programs, from their constructor arguments.

They are for sampling; the sections of training are the defaults.
"""

from typing import Any

import ml_collections

from configs import default_cifar10_configs
from configs.common import finish


def pretrained(described: ml_collections.ConfigDict, arg: str, dataset: str) -> ml_collections.ConfigDict:
    """The default sections with what a converter knows of a network; then the argument."""
    config = default_cifar10_configs.get_default_configs()
    with config.unlocked(), config.ignore_type():
        config.model = ml_collections.ConfigDict()
        for section in ("training", "data", "model", "sampling"):
            config[section].update(described[section])
    config.data.dataset = dataset
    return finish(config, arg)


def ddpmpp64(dropout: float) -> dict[str, Any]:
    """Arguments of EDM's SongUNet, as DDPM++ on 64x64 pixels, that its networks of FFHQ and AFHQv2 share."""
    return {
        "img_resolution": 64,
        "in_channels": 3,
        "out_channels": 3,
        "augment_dim": 9,
        "model_channels": 128,
        "channel_mult": [1, 2, 2, 2],
        "num_blocks": 4,
        "attn_resolutions": [16],
        "dropout": dropout,
        "embedding_type": "positional",
        "encoder_type": "standard",
        "decoder_type": "standard",
        "channel_mult_noise": 1,
        "resample_filter": [1, 1],
    }


def guided_unet(size: int, **settings: Any) -> dict[str, Any]:
    """Arguments of guided-diffusion's UNetModel that its published networks share."""
    shared = {
        "image_size": size,
        "in_channels": 3,
        "out_channels": 6,  # learn_sigma
        "attention_resolutions": [size // r for r in (32, 16, 8)],
        "num_classes": 1000,
        "resblock_updown": True,
        "use_scale_shift_norm": True,
    }
    return {**shared, **settings}
