"""Load a trained model: its configuration, SDE, score function and statistics."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from pds_jax import checkpoints, denoisers, sde_lib
from pds_jax import statistics as statistics_lib
from pds_jax.batches import Decode
from pds_jax.convert import diffusers
from pds_jax.data.shapes import image_shape
from pds_jax.models import create_model
from pds_jax.score_fn import get_score_fn, model_options
from pds_jax.types import PdsError, ScoreFn


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model: its configuration, the SDE of its training and its score function.

    Attributes:
      name: what it was loaded from.
      shape: (H, W, C) of one image.
      statistics: of its data, or None.
      digest: SHA-256 of the weights.
      notes: messages about how the weights were read, for example which of two sets.
      decode: arrays (n, H, W, C) of the sampler -> images (n, H', W', C') in [0, 1], on the host, if the model does not
        make images itself; by default their range is that of config.data.
      decoded_shape: (H', W', C'), with ``decode``.
    """

    name: str
    config: ConfigDict
    sde: sde_lib.SDE
    score_fn: ScoreFn
    shape: tuple[int, int, int]
    statistics: statistics_lib.Statistics | None
    digest: str
    notes: tuple[str, ...] = ()
    decode: Decode | None = None
    decoded_shape: tuple[int, int, int] | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image that :func:`draw` returns."""
        return self.decoded_shape or self.shape

    @property
    def num_classes(self) -> int:
        """Classes that the network was trained with; 0 for a network without labels."""
        return int(self.config.model.get("label_dim", 0))

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the score, for manifests: weights, network, SDE, the data's range, statistics in the network."""
        config = self.config
        options = {name: config.training.get(name) for name in ("sde", "continuous")} if "training" in config else {}
        model = config.model.to_dict()
        if not model.get("rescale_timesteps", True):  # earlier versions had no such field, and their folders go on
            del model["rescale_timesteps"]
        found = {"weights_sha256": self.digest, "model": model, **options}
        found["centered"] = config.data.centered
        if config.model.get("parametrisation") == "wiener" and self.statistics is not None:
            found["network_statistics_sha256"] = digest_of(self.statistics.to_range(config.data.centered))
        return found

    @property
    def default_labels(self) -> str | None:
        """Labels if none are given: random ones for a network with classes."""
        return "random" if self.num_classes else None


def load(
    checkpoint: str, config: ConfigDict | None = None, *, use_ema: bool = True, dtype: str | None = None
) -> Trained:
    """Load a trained model.

    Args:
      checkpoint: a name in ``checkpoints.SHIPPED``; a folder with model.safetensors and
        config.json; a training workdir; a snapshot of EDM; a folder of diffusers' DDPMPipeline; or a file of score_sde,
        score_sde_pytorch, NCSN++ in diffusers or guided-diffusion, which need ``config``.
      config: by default the one saved with the weights.
      use_ema: read the moving average of the weights if there is one, not the raw weights.
      dtype: the network's dtype, instead of config.model.dtype; weights and scores stay float32.

    Returns:
      The model, for :func:`plan` and :func:`draw`.

    Raises:
      PdsError: there is no checkpoint, it is damaged, or it is of another network; the message names the first
        parameter that differs.
    """
    if any((pathlib.Path(checkpoint) / name).is_dir() for name in ("vae", "vqvae")):
        raise PdsError(
            f"{checkpoint} is a latent diffusion model: --mode=sample takes it, pds_jax.latent.trained.load reads it"
        )
    unet = diffusers.pixel_unet(checkpoint, use_ema)
    if unet is not None:
        if config is not None:
            raise PdsError(f"{checkpoint} says by itself what network it is: leave the configuration (--config) out")
        return _pixel_model(str(checkpoint), unet, use_ema, dtype)
    found = checkpoints.load_any(checkpoint, config, use_ema=use_ema)
    config, stats = found.config, found.statistics
    if dtype is not None:
        with config.unlocked():
            config.model.dtype = dtype
    sde, _ = sde_lib.get_sde(config)
    score_fn = _score_fn(config, sde, jax.device_put(found.params), stats)
    return Trained(str(checkpoint), config, sde, score_fn, image_shape(config), stats, found.digest, found.notes)


def _pixel_model(checkpoint: str, folder: pathlib.Path, use_ema: bool, dtype: str | None) -> Trained:
    """A UNet2DModel of plain blocks in a folder of diffusers."""
    from pds_jax.latent.pixels import read

    found, sde, score_fn = read(checkpoint, folder, use_ema=use_ema, dtype=dtype or "float32")
    checkpoints.log_notes(checkpoint, found.notes)
    shape = image_shape(found.config)
    return Trained(checkpoint, found.config, sde, score_fn, shape, found.statistics, found.digest, found.notes)


def _score_fn(config: ConfigDict, sde: sde_lib.SDE, params: Any, stats: Any) -> ScoreFn:
    model = create_model(config)
    if config.model.get("parametrisation") in denoisers.PARAMETRISATIONS:
        return denoisers.get_score(config, sde, model, params)
    return get_score_fn(
        sde,
        model,
        params,
        continuous=config.training.continuous,
        statistics=None if stats is None else stats.to_range(config.data.centered),
        **model_options(config),
        num_scales=config.model.num_scales,
    )


def digest_of(arrays: Sequence[Any]) -> str:
    """SHA-256 of arrays as little-endian float32."""
    return hashlib.sha256(b"".join(np.asarray(value, "<f4").tobytes() for value in arrays)).hexdigest()
