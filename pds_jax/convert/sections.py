"""Configurations made from a file: the sections that a network's description does not fill."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_collections

from pds_jax.config_defaults import complete


def configuration(
    model: Mapping[str, Any], *, sde: str, image_size: int, channels: int, sampling: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    """A configuration of a network that is sampled, not trained, for images in [−1, 1].

    ``model`` are the fields of its section, ``sampling`` those that differ from a plain sampler without corrector.
    """
    config = ml_collections.ConfigDict()
    config.training = {"sde": sde, "continuous": True}
    config.data = {
        "dataset": "",
        "image_size": image_size,
        "num_channels": channels,
        "centered": True,
        "random_flip": True,
        "uniform_dequantization": False,
    }
    config.model = {**_SCALES, **model}
    config.sampling = dict(sampling)
    config.eval = {"begin_ckpt": 1, "end_ckpt": 1, "batch_size": 64, "enable_sampling": True, "enable_loss": False}
    config.pds = {"gain": 1.0}
    return complete(config)


_SCALES = {"sigma_min": 0.01, "sigma_max": 50.0, "beta_min": 0.1, "beta_max": 20.0, "num_scales": 1000}
