"""``config.json`` of a component to the sizes of our network; a field that would change what it computes is refused.

A field that a file lacks has the default of diffusers' or transformers' constructor. A field that is unknown here is
refused unless its value switches it off (null, false).
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from pds_jax.convert.tree import ConversionError
from pds_jax.io import files
from pds_jax.latent.autoencoder import AutoencoderSizes
from pds_jax.latent.clip import ACTIVATIONS, TextSizes, VisionSizes
from pds_jax.latent.unet2d import CONTEXT, PIXELS, UNetSizes
from pds_jax.types import unknown_name

SUPPORTED = (
    "supported are StableDiffusionPipeline of Stable Diffusion 1.x and 2.x, and LDMPipeline, with UNet2DConditionModel "
    "or UNet2DModel, AutoencoderKL or VQModel, CLIPTextModel and CLIPTokenizer; and, without an autoencoder, "
    "DDPMPipeline, DDIMPipeline and PNDMPipeline with UNet2DModel"
)
_DOWN = {"DownBlock2D": None, "AttnDownBlock2D": PIXELS, "CrossAttnDownBlock2D": CONTEXT}
_UP = {"UpBlock2D": None, "AttnUpBlock2D": PIXELS, "CrossAttnUpBlock2D": CONTEXT}
_MID = {"UNetMidBlock2D": PIXELS, "UNetMidBlock2DCrossAttn": CONTEXT, None: "none"}
_ENCODER = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}
_DECODER = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}

# Fields that this reader uses, with the default of diffusers' constructor.
_UNET: dict[str, Any] = {
    "sample_size": None,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "layers_per_block": 2,
    "downsample_padding": 1,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "attention_head_dim": 8,
    "resnet_time_scale_shift": "default",
    "mid_block_scale_factor": 1,
    "time_embedding_dim": None,
    "dropout": 0.0,  # of training only
}
_CONDITION: dict[str, Any] = {
    **_UNET,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "use_linear_projection": False,
    "upcast_attention": False,  # softmax is in float32 here always
    "num_attention_heads": None,
}
_UNCONDITIONAL: dict[str, Any] = {
    **_UNET,
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "attn_norm_num_groups": None,
    "add_attention": True,
    "num_train_timesteps": None,  # of the learned time embedding only
}
# Fields with values that change nothing here.
_UNET_FIXED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "time_embedding_type": ("positional",),
}
_CONDITION_FIXED: dict[str, tuple[Any, ...]] = {
    **_UNET_FIXED,
    "resnet_out_scale_factor": (1.0,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
    "addition_embed_type_num_heads": (64,),
}
_UNCONDITIONAL_FIXED = {**_UNET_FIXED, "downsample_type": ("conv",), "upsample_type": ("conv",)}

_AUTOENCODER: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "force_upcast": False,  # the network's dtype is an option here
    "mid_block_add_attention": True,
}
_KL: dict[str, Any] = {
    **_AUTOENCODER,
    "latent_channels": 4,
    "shift_factor": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}
_VQ: dict[str, Any] = {
    **_AUTOENCODER,
    "latent_channels": 3,
    "num_vq_embeddings": 256,
    "vq_embed_dim": None,
    "lookup_from_codebook": False,  # concerns code numbers as input, which nothing here gives
}
_AUTOENCODER_FIXED: dict[str, tuple[Any, ...]] = {"act_fn": ("silu", "swish"), "norm_type": ("group",)}


def read_config(folder: str | os.PathLike[str], name: str = "config.json") -> tuple[dict[str, Any], str]:
    """Fields of a component's configuration, and the file's name for messages.

    Raises:
      PdsError: it is missing or is no dictionary.
    """
    path = pathlib.Path(folder) / name
    fields = files.read_json(path)
    if not isinstance(fields, dict):
        raise ConversionError(f"{path} holds no dictionary")
    return fields, str(path)


def unet_sizes(fields: Mapping[str, Any], where: str) -> UNetSizes:
    """Sizes of a UNet2DConditionModel or a UNet2DModel.

    Args:
      fields: its ``config.json``.
      where: the file, for messages.

    Raises:
      ConversionError: another class, or a field that this reader does not know how to follow.
    """
    if fields.get("addition_embed_type") is not None:
        raise ConversionError(
            f"{where}: addition_embed_type={fields['addition_embed_type']!r} is Stable Diffusion XL or alike, which is "
            f"not supported; {SUPPORTED}"
        )
    kind = _class(fields, where, ("UNet2DConditionModel", "UNet2DModel"))
    if kind == "UNet2DConditionModel":
        return _condition_sizes(_Fields(fields, where, _CONDITION, _CONDITION_FIXED))
    return _unconditional_sizes(_Fields(fields, where, _UNCONDITIONAL, _UNCONDITIONAL_FIXED))


def _condition_sizes(f: _Fields) -> UNetSizes:
    if f["num_attention_heads"] is not None:
        raise ConversionError(f"{f.where}: num_attention_heads is given, which diffusers refuses too; use its folder")
    width = f["cross_attention_dim"]
    if not isinstance(width, int):
        raise ConversionError(f"{f.where}: cross_attention_dim={width!r} is not one number; {SUPPORTED}")
    # Despite its name, attention_head_dim is the number of heads in this class.
    heads = f.per_level("attention_head_dim")
    if PIXELS in (*f.blocks("down_block_types", _DOWN), *f.blocks("up_block_types", _UP)):
        raise ConversionError(
            f"{f.where}: blocks that attend to their own pixels (Attn...Block2D) have other heads in a "
            "UNet2DConditionModel; that is not supported"
        )
    return _sizes(f, heads=heads, linear=f["use_linear_projection"], context_width=width)


def _unconditional_sizes(f: _Fields) -> UNetSizes:
    dim = f["attention_head_dim"]
    heads = tuple(1 if dim is None else width // dim for width in f.per_level("block_out_channels"))
    return _sizes(f, heads=heads, linear=False, context_width=None)


def _sizes(f: _Fields, *, heads: tuple[int, ...], linear: bool, context_width: int | None) -> UNetSizes:
    widths = f.per_level("block_out_channels")
    shift = f.choice("resnet_time_scale_shift", {"default": False, "scale_shift": True})
    mid = f.choice("mid_block_type", _MID)
    if not f.get("add_attention", True) and mid == PIXELS:
        mid = None
    groups = f["norm_num_groups"] or 32
    if shift and f.get("attn_norm_num_groups") is None and mid == PIXELS:
        raise ConversionError(
            f"{f.where}: with resnet_time_scale_shift='scale_shift' diffusers leaves out the norm of the middle's "
            f"attention unless attn_norm_num_groups is given; that is not supported"
        )
    for name, levels in (("down_block_types", _DOWN), ("up_block_types", _UP)):
        if CONTEXT in f.blocks(name, levels) and context_width is None:
            raise ConversionError(f"{f.where}: {name} asks for cross attention, which a UNet2DModel has none of")
    for width, count in zip(widths, heads, strict=True):
        if count < 1 or width % count or width % groups:
            raise ConversionError(
                f"{f.where}: {width} channels do not split into {count} heads and {groups} groups of the norm"
            )
    return UNetSizes(
        in_channels=f["in_channels"],
        out_channels=f["out_channels"],
        widths=widths,
        down=f.blocks("down_block_types", _DOWN),
        up=f.blocks("up_block_types", _UP),
        mid=mid,
        layers=f.per_level("layers_per_block"),
        heads=heads,
        depth=f.per_level("transformer_layers_per_block", 1),
        linear=linear,
        groups=groups,
        attention_groups=f.get("attn_norm_num_groups") or groups,
        eps=f["norm_eps"],
        flip=f["flip_sin_to_cos"],
        shift=f["freq_shift"],
        time_width=f["time_embedding_dim"] or 4 * widths[0],
        context_width=context_width,
        padding=f.choice("downsample_padding", {0: 0, 1: 1}),
        scale_shift=shift,
        mid_scale=float(f["mid_block_scale_factor"]),
        center=f["center_input_sample"],
    )


def autoencoder_sizes(fields: Mapping[str, Any], where: str) -> AutoencoderSizes:
    """Sizes of an AutoencoderKL or a VQModel; arguments and errors as of :func:`unet_sizes`."""
    kind = _class(fields, where, ("AutoencoderKL", "VQModel"))
    quantised = kind == "VQModel"
    f = _Fields(fields, where, _VQ if quantised else _KL, _AUTOENCODER_FIXED)
    if f["in_channels"] != f["out_channels"]:
        raise ConversionError(f"{where}: in_channels and out_channels differ")
    channels = f["latent_channels"]
    codes = (f["vq_embed_dim"] or channels) if quantised else channels
    return AutoencoderSizes(
        image_channels=f["in_channels"],
        latent_channels=channels,
        code_channels=codes,
        codes=f["num_vq_embeddings"] if quantised else None,
        widths=f.per_level("block_out_channels"),
        down=f.blocks("down_block_types", _ENCODER),
        up=f.blocks("up_block_types", _DECODER),
        mid_attention=f["mid_block_add_attention"],
        layers=f["layers_per_block"],
        groups=f["norm_num_groups"],
        quant_conv=True if quantised else f["use_quant_conv"],
        post_quant_conv=True if quantised else f["use_post_quant_conv"],
        scale=float(f["scaling_factor"]),
        offset=float(f.get("shift_factor") or 0.0),
    )


# Fields of transformers' configurations that say something about generation, training or provenance.
_CLIP: dict[str, Any] = {
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_TEXT: dict[str, Any] = {
    **_CLIP,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}
_VISION: dict[str, Any] = {
    **_CLIP,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "num_channels": 3,
}


def text_sizes(fields: Mapping[str, Any], where: str) -> TextSizes:
    """Sizes of a CLIP text encoder; arguments and errors as of :func:`unet_sizes`.

    transformers writes dozens of fields that do not concern the computation, so unknown ones are skipped here.
    """
    kind = fields.get("model_type", "clip_text_model")
    names = fields.get("architectures") or ["CLIPTextModel"]
    if kind not in ("clip_text_model", "clip") or names[0] not in ("CLIPTextModel", "CLIPModel"):
        raise ConversionError(f"{where}: a text encoder {names[0]} ({kind}) is not supported; {SUPPORTED}")
    f = {**_TEXT, **fields}
    return TextSizes(
        **_transformer(f, where),
        vocabulary=f["vocab_size"],
        positions=f["max_position_embeddings"],
        end=f["eos_token_id"],
    )


def vision_sizes(fields: Mapping[str, Any], where: str) -> VisionSizes:
    """Sizes of CLIP's image encoder; arguments and errors as of :func:`text_sizes`."""
    f = {**_VISION, **fields}
    if f["num_channels"] != 3 or f["image_size"] % f["patch_size"]:
        raise ConversionError(f"{where}: the image encoder takes RGB images that its patches divide")
    return VisionSizes(**_transformer(f, where), image=f["image_size"], patch=f["patch_size"])


def _transformer(f: Mapping[str, Any], where: str) -> dict[str, Any]:
    if f["hidden_act"] not in ACTIVATIONS:
        raise ConversionError(f"{where}: {unknown_name('hidden_act', f['hidden_act'], ACTIVATIONS)}")
    if f["hidden_size"] % f["num_attention_heads"]:
        raise ConversionError(f"{where}: hidden_size is not a multiple of num_attention_heads")
    return {
        "width": f["hidden_size"],
        "inner": f["intermediate_size"],
        "layers": f["num_hidden_layers"],
        "heads": f["num_attention_heads"],
        "activation": f["hidden_act"],
        "eps": f["layer_norm_eps"],
    }


def _class(fields: Mapping[str, Any], where: str, known: tuple[str, ...]) -> str:
    name = fields.get("_class_name")
    if name not in known:
        raise ConversionError(f"{where} describes a {name}, which is not supported; {SUPPORTED}")
    return str(name)


class _Fields:
    """Fields of a configuration with the defaults filled in; what nobody here reads must be harmless."""

    def __init__(
        self, given: Mapping[str, Any], where: str, used: Mapping[str, Any], fixed: Mapping[str, tuple[Any, ...]]
    ):
        self.where = where
        self._values = {**used, **{name: value for name, value in given.items() if name in used}}
        for name, value in given.items():
            if name in fixed and value not in fixed[name]:
                raise ConversionError(f"{where}: {name}={value!r} is not supported; known: {fixed[name][0]!r}")
            if name not in used and name not in fixed and not name.startswith("_") and value not in (None, False):
                raise ConversionError(f"{where}: {name}={value!r} is not supported; {SUPPORTED}")

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The value where the class has such a field."""
        return self._values.get(name, default)

    def choice(self, name: str, known: Mapping[Any, Any]) -> Any:
        """What a value stands for."""
        value = self._values[name]
        if value not in known:
            names = ", ".join(map(repr, known))
            raise ConversionError(f"{self.where}: {name}={value!r} is not supported; known: {names}")
        return known[value]

    def per_level(self, name: str, default: Any = None) -> tuple[int, ...]:
        """One number a resolution; a single number stands for all."""
        levels = self._levels()
        value = self._values.get(name, default)
        numbers = (value,) * levels if isinstance(value, int) else value
        if not isinstance(numbers, list | tuple) or not all(type(n) is int and n > 0 for n in numbers):
            raise ConversionError(f"{self.where}: {name}={value!r} is not a list of whole numbers above 0")
        if len(numbers) != levels:
            raise ConversionError(f"{self.where}: {name} has {len(numbers)} numbers, block_out_channels {levels}")
        return tuple(numbers)

    def blocks(self, name: str, known: Mapping[str, Any]) -> tuple[Any, ...]:
        """What the name of each block stands for."""
        value = self._values[name]
        if not isinstance(value, list | tuple) or len(value) != self._levels():
            raise ConversionError(f"{self.where}: {name}={value!r} does not name one block for each resolution")
        for block in value:
            if block not in known:
                raise ConversionError(f"{self.where}: block {block!r} is not supported; known: {', '.join(known)}")
        return tuple(known[block] for block in value)

    def _levels(self) -> int:
        value = self._values["block_out_channels"]
        if not isinstance(value, list | tuple) or not value:
            raise ConversionError(f"{self.where}: block_out_channels={value!r} is not a list")
        return len(value)
