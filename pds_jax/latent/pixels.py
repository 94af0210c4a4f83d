"""A network of pixels in a folder of diffusers: a ``UNet2DModel``, and the noise levels of its scheduler.

The layouts are those of DDPMPipeline: the UNet in ``unet`` and the scheduler in ``scheduler``, or both beside
``model_index.json``; or the UNet's folder alone beside ``scheduler``.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from pds_jax import adapters
from pds_jax.checkpoints import Loaded, digest_of, with_statistics_beside
from pds_jax.convert import diffusers, diffusers_weights
from pds_jax.convert.folder_weights import opened_weights
from pds_jax.convert.sections import configuration
from pds_jax.convert.tree import ConversionError, Report, assemble
from pds_jax.convert.weight_sets import AS_SAVED
from pds_jax.latent import layouts, schedule
from pds_jax.latent.folder import INDEX, init_unet, latent_size
from pds_jax.latent.params import pairs_of, shapes_of, to_device
from pds_jax.latent.score import LatentPrediction
from pds_jax.latent.unet2d import UNet2D, UNetSizes
from pds_jax.types import ScoreFn

SCHEDULER = "scheduler_config.json"
PIPELINES = ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline")
# Those whose networks take the level k of training for x_k = √ᾱ_k x_0 + √(1 − ᾱ_k) ε.
SCHEDULERS = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
)
_OF_LEVELS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "prediction_type",
)


def read(path: str, folder: pathlib.Path, *, use_ema: bool, dtype: str) -> tuple[Loaded, schedule.TableVPSDE, ScoreFn]:
    """Read a network of pixels.

    Args:
      path: what was given: the pipeline's folder, the UNet's, or a weights file in it.
      folder: the UNet's, see ``convert.diffusers.pixel_unet``.
      use_ema: the moving average of the weights where it lies beside the raw ones, or those.
      dtype: of the network's computation.

    Returns:
      The model with a configuration to sample it by, the SDE of its noise levels, and its score function.

    Raises:
      PdsError: another pipeline or scheduler, no scheduler, a network of another layout, or a damaged file.
    """
    _check_pipeline(folder)
    fields, where = layouts.read_config(folder)
    sizes = layouts.unet_sizes(fields, where)
    size = _check_images(fields, sizes, where)
    levels, prediction, alpha_bar = _levels(folder)
    unet = UNet2D(sizes, dtype=jnp.dtype(dtype))
    params, report = _params(pathlib.Path(path), folder, unet, use_ema)
    config = configuration(
        {
            "name": "unet2d",
            "num_scales": len(alpha_bar),
            "dtype": dtype,
            "sizes": dataclasses.asdict(sizes),
            "scheduler": levels,
        },
        sde="diffusers",
        image_size=size[0],
        channels=sizes.in_channels,
        sampling={"predictor": "ancestral_sampling"},
    )
    if size[0] != size[1]:
        with config.ignore_type():
            config.data.image_size = size
    digest = digest_of(params)
    sde = schedule.TableVPSDE(alpha_bar)
    make = adapters.from_v if prediction == "v_prediction" else adapters.from_epsilon
    predict = LatentPrediction(to_device(params), model=unet)
    score_fn = make(predict, sde, alpha=np.sqrt(alpha_bar), sigma=np.sqrt(1 - alpha_bar))
    found = Loaded(params, config, None, digest, path, tuple(report.notes))
    return with_statistics_beside(found, pathlib.Path(path)), sde, score_fn


def _check_pipeline(folder: pathlib.Path) -> None:
    """Refuse the network of another kind of pipeline, whose images are not what it makes."""
    for place in (folder, folder.parent) if "unet" in folder.name.lower() else (folder,):
        if any((place / name).is_dir() for name in ("vae", "vqvae")):
            raise ConversionError(f"{folder} is the network of a latent diffusion model: give the whole folder {place}")
        if (place / INDEX).is_file():
            index, where = layouts.read_config(place, INDEX)
            name = index.get("_class_name")
            if name not in PIPELINES:
                raise ConversionError(
                    f"{where}: a {name} with a network of pixels is not supported; {layouts.SUPPORTED}"
                )
            return


def _check_images(fields: Mapping[str, Any], sizes: UNetSizes, where: str) -> tuple[int, int]:
    """(H, W) of the images."""
    if sizes.out_channels != sizes.in_channels:
        raise ConversionError(
            f"{where}: out_channels is {sizes.out_channels}, the images have {sizes.in_channels}; that is not supported"
        )
    size = latent_size(fields.get("sample_size"))
    if size is None or min(size) < 1:
        raise ConversionError(
            f"{where}: sample_size={fields.get('sample_size')!r} does not say how large the images are; set it to "
            "their side in pixels"
        )
    return size


def _levels(folder: pathlib.Path) -> tuple[dict[str, Any], str, np.ndarray]:
    """Fields of the scheduler that decide the noise levels, what the network predicts, and ᾱ_k."""
    places = (folder, folder / "scheduler", folder.parent / "scheduler", folder.parent)
    path = next((place / SCHEDULER for place in places if (place / SCHEDULER).is_file()), None)
    if path is None:
        raise ConversionError(
            f"{folder} is a network without {SCHEDULER}, which says its noise levels: put the folder 'scheduler' of "
            "its pipeline beside it"
        )
    fields, where = layouts.read_config(path.parent, SCHEDULER)
    name = fields.get("_class_name")
    if name not in SCHEDULERS:
        raise ConversionError(f"{where}: noise levels of a {name} are not supported; known: {', '.join(SCHEDULERS)}")
    alpha_bar, prediction = schedule.alpha_bars(fields, where), schedule.prediction_type(fields, where)
    return {name: fields[name] for name in _OF_LEVELS if fields.get(name) is not None}, prediction, alpha_bar


def _params(given: pathlib.Path, folder: pathlib.Path, unet: UNet2D, use_ema: bool) -> tuple[dict[str, Any], Report]:
    report = Report("diffusers", str(given), AS_SAVED)
    weights = given if given.is_file() else diffusers_weights.find(folder, use_ema, report)
    diffusers.note_folder(given, folder, use_ema, report)
    shapes = shapes_of(functools.partial(init_unet, unet))
    with opened_weights(weights) as sources:
        params = assemble(pairs_of(shapes), sources, shapes, report)
    if not use_ema and report.weights == AS_SAVED:
        report.notes.append("this kind keeps one set of weights; asking for the raw ones changes nothing")
    return params, report
