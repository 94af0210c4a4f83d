"""Read and write checkpoints of other programs: ``sniff``, ``load_checkpoint``, ``export``.

Files are never trusted: nothing in them is run, every leaf is accounted for, damage is a typed error.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from pds_jax.convert import adm, dialects, diffusers, edm, orbax_io, safetensors_io, score_sde, score_sde_torch
from pds_jax.convert.hub import fetch, is_hub_id
from pds_jax.convert.sniffing import KINDS, sniff
from pds_jax.convert.training_state import TrainingState, load_training_state
from pds_jax.convert.tree import ConversionError, Report, template
from pds_jax.convert.weight_sets import AS_SAVED
from pds_jax.io import files
from pds_jax.types import unknown_name

__all__ = [
    "EXPORTS",
    "KINDS",
    "ConversionError",
    "Report",
    "TrainingState",
    "check_export",
    "check_place",
    "config_of",
    "export",
    "load_checkpoint",
    "load_training_state",
    "is_hub_id",
    "locate",
    "sniff",
]

EXPORTS = {
    "safetensors": safetensors_io.export,
    "score_sde_torch": score_sde_torch.export,
    "diffusers": diffusers.export,
    "guided_diffusion": adm.export,
}


def locate(path: str | os.PathLike[str], allow_download: bool = False) -> str:
    """A checkpoint's place on this machine.

    Args:
      path: a file or folder, or a Hugging Face Hub id such as ``google/ncsnpp-church-256``.
      allow_download: fetch a Hub id; without it nothing is ever fetched.

    Returns:
      The path, or the folder that was fetched.

    Raises:
      PdsError: a Hub id without permission, or a failed download.
    """
    if not pathlib.Path(path).exists() and is_hub_id(str(path)):
        return fetch(str(path), allow_download)
    return str(path)


def config_of(path: str | os.PathLike[str]) -> ml_collections.ConfigDict:
    """The configuration that a checkpoint carries: one of our own models, or a snapshot of EDM.

    Raises PdsError if it carries none.
    """
    return edm.config_of(path) if sniff(path) == "edm" else safetensors_io.config_of(path)


def load_checkpoint(
    path: str | os.PathLike[str], config: Any, *, use_ema: bool = True, allow_download: bool = False
) -> tuple[dict[str, Any], Report]:
    """Read the parameters of any known checkpoint into our tree.

    Args:
      path: a file or folder, or with ``allow_download`` a Hugging Face Hub id (see :func:`locate`).
      config: the score_sde config that the network was trained with.
      use_ema: the moving average of the weights (default), or the raw ones, where a file has both.
      allow_download: whether a Hub id may be fetched.

    Returns:
      (parameters, report): nested dicts of float32 arrays with score_sde's names, and what became of every leaf.

    Raises:
      PdsError: unknown or damaged file, or one that does not fit the config; the first leaf is named.
    """
    path = locate(path, allow_download)
    kind = sniff(path)
    shapes = template(config)
    if kind == "score_sde_flax":
        return score_sde.load(path, shapes, use_ema)
    if kind == "orbax":
        return orbax_io.load(path, shapes, use_ema)
    if kind == "score_sde_torch":
        return dialects.load_torch(path, config, shapes, use_ema)
    if kind == "guided_diffusion":
        params, report = adm.load(path, config, shapes)
    elif kind == "edm":
        if not use_ema:
            raise ConversionError(f"{path} is a snapshot of EDM, which holds the moving average of the weights alone")
        params, report = edm.load(path, config, shapes)
    elif kind == "diffusers":
        params, report = diffusers.load(path, config, shapes, use_ema)
    else:
        params, report = dialects.load_safetensors(path, config, shapes, use_ema)
    if not use_ema and report.weights == AS_SAVED:
        report.notes.append("this kind keeps one set of weights; asking for the raw ones changes nothing")
    return params, report


def export(params: Mapping[str, Any], config: Any, path: str | os.PathLike[str], kind: str = "safetensors") -> None:
    """Write parameters for another program, or as our own model.

    Args:
      params: nested dicts of arrays, of the config's network.
      config: a score_sde config.
      path: a folder (``safetensors``, ``diffusers``) or a file (``score_sde_torch``).
      kind: one of ``EXPORTS``.

    Raises:
      PdsError: unknown kind, a network that the kind cannot hold, parameters of another network, or no such place.
    """
    check_export(config, kind)
    check_place(path, kind)
    EXPORTS[kind](params, config, path)


def check_place(path: str | os.PathLike[str], kind: str) -> None:
    """Refuse, before any weights are read, a place that cannot be written or holds what would be read with the result.

    Raises:
      PdsError: no permission or no such place, statistics of another model, or another UNet.
    """
    folder = pathlib.Path(path)
    if kind == "safetensors" and (folder / safetensors_io.STATISTICS).exists():
        raise ConversionError(
            f"{folder} holds {safetensors_io.STATISTICS}, which would be used with the new weights; move it away, or "
            "choose another folder"
        )
    if kind == "diffusers":
        diffusers.check_place(folder)
    inside = kind in ("safetensors", "diffusers") and folder.exists()
    files.check_writable(folder / safetensors_io.CONFIG if inside else folder)


def check_export(config: Any, kind: str) -> None:
    """Refuse, before any weights are read, a network that a kind cannot hold.

    Other programs take the network's output for the score, guided-diffusion for the noise. With another parametrisation
    it is only part of it, and what makes the score of it (the data's statistics, scales in σ) cannot be folded into
    weights.

    Raises:
      PdsError: unknown kind, or what of the configuration has no place there.
    """
    if kind not in EXPORTS:
        raise ConversionError(unknown_name("kind", kind, EXPORTS))
    parametrisation = config.model.get("parametrisation", "score_sde")
    if kind in ("score_sde_torch", "diffusers") and parametrisation != "score_sde":
        raise ConversionError(
            f"kind {kind!r} holds networks whose output is the score; this one's has the parametrisation "
            f"{parametrisation!r}, which other programs would read wrongly; use kind 'safetensors'"
        )
    if kind in ("score_sde_torch", "diffusers") and config.model.get("patch_size", 1) != 1:
        raise ConversionError(
            f"kind {kind!r} holds networks that compute on pixels; this one's model.patch_size is "
            f"{config.model.patch_size}; use kind 'safetensors'"
        )
    if kind == "diffusers":
        diffusers.check(config)
    elif kind == "score_sde_torch":
        score_sde_torch.check(config)
    elif kind == "guided_diffusion":
        adm.check(config)
