"""A pipeline's folder of diffusers, whole: network, autoencoder, text encoder, scheduler."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pds_jax.convert.folder_weights import DIFFUSERS_STEM
from pds_jax.convert.tree import ConversionError, Report
from pds_jax.latent import layouts, schedule
from pds_jax.latent.autoencoder import Autoencoder
from pds_jax.latent.blocks import ATTENTION_BYTES, Dtype
from pds_jax.latent.params import load_params, shapes_of, to_device
from pds_jax.latent.text import TextEncoder, load_text
from pds_jax.latent.unet2d import UNet2D

INDEX = "model_index.json"
# Pipelines of the two classes below with other inputs have the same components.
PIPELINES = {
    "StableDiffusionPipeline": ("unet", "vae", "text_encoder", "tokenizer", "scheduler"),
    "StableDiffusionImg2ImgPipeline": ("unet", "vae", "text_encoder", "tokenizer", "scheduler"),
    "LDMPipeline": ("unet", "vqvae", "scheduler"),
}
_IGNORED = (
    "safety_checker",
    "feature_extractor",
    "image_encoder",
    "requires_safety_checker",
    "force_zeros_for_empty_prompt",
)


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """The parts of a latent diffusion model.

    Attributes:
      path: its folder.
      unet: the network.
      unet_params: its parameters.
      autoencoder: the autoencoder.
      autoencoder_params: its parameters.
      text: the text encoder, or None for an unconditional model.
      alpha_bar: (n,) float64 ᾱ_k of training.
      prediction: "epsilon" or "v_prediction".
      latent_size: (h, w) that the network was trained at, or None where the folder does not say.
      scheduler: ``scheduler_config.json``.
      notes: what a user should know.
      reports: of each component's parameters.
    """

    path: str
    unet: UNet2D
    unet_params: Any
    autoencoder: Autoencoder
    autoencoder_params: Any
    text: TextEncoder | None
    alpha_bar: np.ndarray
    prediction: str
    latent_size: tuple[int, int] | None
    scheduler: Mapping[str, Any]
    notes: tuple[str, ...]
    reports: Mapping[str, Report]

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return self.unet.sizes.in_channels


def is_pipeline(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is a pipeline that :func:`load_pipeline` is for (or that it refuses by name)."""
    index = pathlib.Path(path) / INDEX
    if not index.is_file():
        return False
    fields, _ = layouts.read_config(path, INDEX)
    return "vae" in fields or "vqvae" in fields or "text_encoder" in fields


def load_pipeline(
    path: str | os.PathLike[str],
    *,
    dtype: Dtype = jnp.float32,
    variant: str | None = None,
    attention_bytes: int = ATTENTION_BYTES,
) -> Pipeline:
    """Read a pipeline's folder.

    Args:
      path: the folder, with ``model_index.json``.
      dtype: of the networks' computation and of their parameters.
      variant: of the weights, "fp16" for instance; by default float32 where it is there.
      attention_bytes: of attention logits at once.

    Raises:
      PdsError: another pipeline, a missing component, a damaged file, or a network of another layout.
    """
    folder = pathlib.Path(path)
    index, where = layouts.read_config(folder, INDEX)
    roles, notes = _check_index(index, where, folder)
    unet_fields, unet_where = layouts.read_config(folder / "unet")
    sizes = layouts.unet_sizes(unet_fields, unet_where)
    vae_role = "vae" if "vae" in roles else "vqvae"
    vae_sizes = layouts.autoencoder_sizes(*layouts.read_config(folder / vae_role))
    scheduler, scheduler_where = layouts.read_config(folder / "scheduler", "scheduler_config.json")
    alpha_bar = schedule.alpha_bars(scheduler, scheduler_where)
    prediction = schedule.prediction_type(scheduler, scheduler_where)
    _check_channels(sizes.in_channels, sizes.out_channels, vae_sizes.code_channels, unet_where)
    text = None
    if "text_encoder" in roles:
        text = load_text(folder / "text_encoder", folder / "tokenizer", dtype=dtype, variant=variant)
        if sizes.context_width != text.shape[1]:
            raise ConversionError(
                f"{unet_where}: cross_attention_dim is {sizes.context_width}, but the text encoder's states have "
                f"{text.shape[1]} numbers; they are of different models"
            )
    elif sizes.context_width is not None:
        raise ConversionError(f"{where}: the network attends to a text, but the folder has no text encoder")
    unet, autoencoder = UNet2D(sizes, attention_bytes, dtype), Autoencoder(vae_sizes, attention_bytes, dtype)
    unet_params, unet_report = load_params(
        folder / "unet", [DIFFUSERS_STEM], shapes_of(functools.partial(init_unet, unet)), variant=variant, dtype=dtype
    )
    unet_params = to_device(unet_params)
    vae_params, vae_report = load_params(
        folder / vae_role,
        [DIFFUSERS_STEM],
        shapes_of(functools.partial(init_autoencoder, autoencoder)),
        variant=variant,
        dtype=dtype,
    )
    vae_params = to_device(vae_params)
    reports = {"unet": unet_report, vae_role: vae_report, **({} if text is None else {"text_encoder": text.report})}
    return Pipeline(
        path=str(path),
        unet=unet,
        unet_params=unet_params,
        autoencoder=autoencoder,
        autoencoder_params=vae_params,
        text=text,
        alpha_bar=alpha_bar,
        prediction=prediction,
        latent_size=latent_size(unet_fields.get("sample_size")),
        scheduler=scheduler,
        notes=notes,
        reports=reports,
    )


def _check_index(index: Mapping[str, Any], where: str, folder: pathlib.Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The components to read, and notes on what is skipped."""
    name = index.get("_class_name")
    if name not in PIPELINES:
        extra = " (Stable Diffusion XL has two text encoders)" if "text_encoder_2" in index else ""
        raise ConversionError(f"{where}: a {name}{extra} is not supported; {layouts.SUPPORTED}")
    roles = PIPELINES[name]
    for role in roles:
        if not (folder / role).is_dir():
            raise ConversionError(
                f"{folder} lacks its component {role!r}, a folder that every {name} has; get the whole model"
            )
    notes = []
    for role, value in index.items():
        if role in roles or role.startswith("_") or value in (None, False, [None, None]):
            continue
        if role == "safety_checker":
            notes.append("the folder's safety checker is not run: images are given as the model makes them")
        elif role not in _IGNORED:
            raise ConversionError(f"{where}: component {role!r} is not supported; {layouts.SUPPORTED}")
    return roles, tuple(notes)


def _check_channels(inputs: int, outputs: int, latents: int, where: str) -> None:
    if inputs != latents:
        known = {9: "inpainting", 8: "editing by instruction", 5: "depth", 7: "upscaling"}
        kind = f", as networks for {known[inputs]} have" if inputs in known else ""
        raise ConversionError(
            f"{where}: in_channels is {inputs}{kind}, but the latents have {latents}; that is not supported"
        )
    if outputs != inputs:
        raise ConversionError(f"{where}: out_channels is {outputs}, the latents have {inputs}; that is not supported")


def latent_size(value: Any) -> tuple[int, int] | None:
    """(h, w) of a configuration's sample_size."""
    if isinstance(value, int):
        return value, value
    return (int(value[0]), int(value[1])) if isinstance(value, list | tuple) and len(value) == 2 else None


def init_unet(model: UNet2D) -> Any:
    """Variables of the network, zeros."""
    sizes = model.sizes
    side = 2 ** len(sizes.widths)
    context = None if sizes.context_width is None else jnp.zeros((1, 2, sizes.context_width))
    return model.init(jax.random.key(0), jnp.zeros((1, side, side, sizes.in_channels)), jnp.zeros((1,)), context)


def init_autoencoder(model: Autoencoder) -> Any:
    """Variables of the autoencoder, zeros."""
    side = 2 * model.sizes.factor
    return model.init(jax.random.key(0), jnp.zeros((1, side, side, model.sizes.image_channels)))
