"""Checkpoints of guided-diffusion (``.pt``): state dicts of UNetModel and of EncoderUNetModel classifiers.

They carry names and numbers only. The order of q, k and v, the number of heads, the noise schedule and the size of the
images are not in them: they come from a configuration, which :func:`config_from_settings` makes from the constructor's
arguments.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from pds_jax.convert.adm_names import adm_pairs
from pds_jax.convert.arguments import Arguments
from pds_jax.convert.pickles import Tensor
from pds_jax.convert.sections import configuration
from pds_jax.convert.torch_files import opened
from pds_jax.convert.tree import ConversionError, Pair, Report, Shape, assemble, check_params, template, to_source
from pds_jax.convert.weight_sets import AS_SAVED
from pds_jax.io import files
from pds_jax.models.adm import POOLS
from pds_jax.types import unknown_name

# The name as a pickle holds it, with its length before it: other programs have it as the end of a longer name.
_NAME = b"input_blocks.0.0.weight"
_MARKS = (b"X" + len(_NAME).to_bytes(4, "little") + _NAME, b"\x8c" + bytes([len(_NAME)]) + _NAME)
# The SDE that each schedule is sampled with: "linear" is that of the VP SDE; "cosine" is of none here, so VE's levels.
_SDES: dict[str, tuple[str, dict[str, float]]] = {
    "linear": ("vpsde", {"beta_min": 0.1, "beta_max": 20.0}),
    "cosine": ("vesde", {"sigma_min": 0.0065, "sigma_max": 80.0}),
}
_IGNORED = ("use_checkpoint", "use_fp16")


def is_state_dict(head: bytes) -> bool:
    """Whether the first bytes of a file are of a guided-diffusion state dict."""
    return any(mark in head for mark in _MARKS)


def config_from_settings(
    settings: Mapping[str, Any],
    *,
    classifier: bool = False,
    noise_schedule: str = "linear",
    steps: int = 1000,
    rescale_timesteps: bool = False,
) -> ml_collections.ConfigDict:
    """Configuration of a network from the arguments of UNetModel's or EncoderUNetModel's constructor.

    Args:
      settings: the arguments; ``attention_resolutions`` are downsampling factors there.
      classifier: whether they are of EncoderUNetModel.
      noise_schedule: of the diffusion, "linear" or "cosine".
      steps: of the diffusion.
      rescale_timesteps: whether the network takes 1000 k/steps for step k, as it was trained with this option.

    Returns:
      The configuration.

    Raises:
      ConversionError: names the first argument that is unknown or malformed.
    """
    where = "EncoderUNetModel" if classifier else "UNetModel"
    given = Arguments({name: value for name, value in settings.items() if name not in _IGNORED}, where)
    unknown = sorted(set(given.values) - set(_KNOWN))
    if unknown:
        raise ConversionError(f"{where}: {unknown_name('argument', unknown[0], _KNOWN)}")
    if noise_schedule not in _SDES:
        raise ConversionError(unknown_name("noise_schedule", noise_schedule, _SDES))
    if type(steps) is not int or steps < 2:
        raise ConversionError(f"steps={steps!r}: use the number of steps of the diffusion, 2 or more")
    if type(rescale_timesteps) is not bool:
        raise ConversionError(f"rescale_timesteps={rescale_timesteps!r}: use True or False")
    if given.integer("dims", 2, most=3) != 2:
        raise given.refuse("dims", "2: the networks here are of images")
    size, channels = given.integer("image_size"), given.integer("in_channels", 3)
    sde, scales = _SDES[noise_schedule]
    model = {**_network(given, size), **scales, "out_channels": given.integer("out_channels")}
    if classifier:
        pool = given.choice("pool", POOLS, "adaptive")
        model |= {"name": "adm_classifier", "pool": pool}
    elif model["out_channels"] not in (channels, 2 * channels):
        raise given.refuse("out_channels", f"{channels}, or {2 * channels} with learn_sigma")
    model |= {"parametrisation": "epsilon", "noise_schedule": noise_schedule, "diffusion_steps": steps}
    model["rescale_timesteps"] = rescale_timesteps
    sampling = {"predictor": "ancestral_sampling"} if sde == "vpsde" else {"predictor": "sde_dpmpp_2m", "grid": "edm"}
    return configuration(model, sde=sde, image_size=size, channels=channels, sampling=sampling)


_KNOWN = (
    "image_size in_channels model_channels out_channels num_res_blocks attention_resolutions dropout channel_mult "
    "conv_resample dims num_classes num_heads num_head_channels num_heads_upsample use_scale_shift_norm "
    "resblock_updown use_new_attention_order pool"
).split()


def _network(given: Arguments, size: int) -> dict[str, Any]:
    """Fields of model, but for the output."""
    per_head = given.integer("num_head_channels", -1, least=-1)
    classes = 0 if given.values.get("num_classes") is None else given.integer("num_classes")
    return {
        "name": "adm",
        "nf": given.integer("model_channels"),
        "ch_mult": given.multiples("channel_mult", (1, 2, 4, 8)),
        "channel_mult_emb": 4,
        "num_res_blocks": given.integer("num_res_blocks"),
        "attn_resolutions": tuple(size // f for f in given.integers("attention_resolutions", empty=True)),
        "dropout": given.rate("dropout", 0.0),
        "label_dim": classes,
        "label_dropout": 0.0,
        "augment_dim": 0,
        "heads": given.integer("num_heads", 1) if per_head == -1 else 0,
        "head_channels": 64 if per_head == -1 else per_head,
        "heads_up": max(given.integer("num_heads_upsample", -1, least=-1), 0) if per_head == -1 else 0,
        "attention_order": "new" if given.flag("use_new_attention_order", False) else "legacy",
        "resblock_updown": given.flag("resblock_updown", False),
        "conv_resample": given.flag("conv_resample", True),
        "scale_shift": given.flag("use_scale_shift_norm", False),
        "groups": 32,
    }


def load(path: str | os.PathLike[str], config: Any, shapes: Mapping[str, Shape]) -> tuple[dict[str, Any], Report]:
    """Parameters of a state dict.

    ``config`` is that of its network, ``shapes`` are those of its parameters. Raises ConversionError if the file is
    damaged, or of another network; the first leaf that differs is named.
    """
    report = Report("guided_diffusion", str(path), AS_SAVED)
    pairs = guided_pairs(config, shapes)
    with opened(path) as (state, leaf):
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise ConversionError(f"{path}: not a dictionary of tensors, which is what guided-diffusion saves")
        sources = {str(name): leaf(value) for name, value in state.items()}
        _check_kind(sources, config, report.path)
        report.notes.append(
            f"the file does not say its attention order; the configuration has {config.model.attention_order!r}"
        )
        report.notes.extend(_note_on_times(config.model))
        return assemble(pairs, sources, shapes, report), report


def _note_on_times(model: Any) -> Iterator[str]:
    """Which times the network is asked at, where that depends on what the file does not say."""
    steps = model.get("diffusion_steps", 1000)
    if steps != 1000 and not model.get("rescale_timesteps", False):
        yield (
            f"the network is asked at times 0 to {steps - 1}; if it was trained with rescale_timesteps=True, as "
            "improved-diffusion's published networks are, set model.rescale_timesteps=True"
        )


def _check_kind(sources: Mapping[str, Any], config: Any, path: str) -> None:
    """Name the difference between a U-Net and a classifier, and between their options, before leaves are compared."""
    model = config.model
    facts = {
        ("a classifier", "a U-Net"): ("output_blocks.0.0.in_layers.0.weight" not in sources, model.name != "adm"),
        ("class-conditional", "unconditional"): ("label_emb.weight" in sources, bool(model.label_dim)),
    }
    for (yes, no), (found, ours) in facts.items():
        if found != ours:
            raise ConversionError(
                f"{path} is {yes if found else no}, the configuration describes {yes if ours else no} network"
            )


def check(config: Any) -> None:
    """Raise ConversionError if guided-diffusion has no network of this configuration, or takes its output otherwise."""
    _check_network(config)
    parametrisation = config.model.get("parametrisation", "score_sde")
    if config.model.name == "adm" and parametrisation != "epsilon":
        raise ConversionError(
            "guided-diffusion's networks predict the noise (parametrisation 'epsilon'); this one's has the "
            f"parametrisation {parametrisation!r}, which it would read wrongly; use kind 'safetensors'"
        )


def guided_pairs(config: Any, shapes: Mapping[str, Shape]) -> list[Pair]:
    """Which leaf of a guided-diffusion state dict is which parameter; ConversionError if it has no such network."""
    _check_network(config)
    return adm_pairs(config, shapes, "guided")


def _check_network(config: Any) -> None:
    model = config.model
    if model.name not in ("adm", "adm_classifier"):
        raise ConversionError(f"guided-diffusion has no network model.name={model.name!r}; known: adm, adm_classifier")
    if model.attention_order == "interleaved" or model.augment_dim or model.groups != 32:
        raise ConversionError(
            "guided-diffusion has no network with model.attention_order='interleaved', augmentation labels or other "
            "than 32 groups; this configuration is of EDM's DhariwalUNet"
        )


def export(params: Mapping[str, Any], config: Any, path: str | os.PathLike[str]) -> None:
    """Write a ``.pt`` that guided-diffusion loads.

    Raises PdsError: no such network there, parameters of another network, PyTorch not installed, or no such place.
    """
    try:
        import torch
    except ImportError as error:
        raise ConversionError("writing a .pt needs PyTorch: pip install 'pds_jax[convert]'") from error
    pairs = guided_pairs(config, template(config))
    arrays = to_source(check_params(params, config), pairs)
    buffer = io.BytesIO()
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, buffer)
    files.atomic_write(path, lambda file: file.write(buffer.getvalue()))
