import dataclasses
import inspect

import pytest
from latent_cases import SMALL, UNETS, VAES, libraries

from pds_jax.convert.tree import ConversionError
from pds_jax.latent import layouts

SD1 = {"_class_name": "UNet2DConditionModel", **SMALL, **UNETS["sd1"]}
LDM = {"_class_name": "UNet2DModel", **SMALL, **UNETS["ldm"]}
KL = {"_class_name": "AutoencoderKL", **SMALL, **VAES["kl"]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({**SD1, "addition_embed_type": "text_time"}, "Stable Diffusion XL.*supported are"),
        ({**SD1, "_class_name": "UNet3DConditionModel"}, "UNet3DConditionModel.*supported are"),
        ({**SD1, "class_embed_type": "timestep"}, "class_embed_type='timestep' is not supported"),
        ({**SD1, "act_fn": "gelu"}, "act_fn='gelu'"),
        ({**SD1, "down_block_types": ["SimpleCrossAttnDownBlock2D", "DownBlock2D"]}, "SimpleCrossAttnDownBlock2D"),
        ({**SD1, "down_block_types": ["DownBlock2D"]}, "one block for each resolution"),
        ({**SD1, "attention_head_dim": [1, 2, 3]}, "3 numbers"),
        ({**SD1, "attention_head_dim": 5}, "do not split into 5 heads"),
        ({**SD1, "block_out_channels": 8}, "block_out_channels"),
        ({**SD1, "cross_attention_dim": [12, 12]}, "not one number"),
        ({**SD1, "down_block_types": ["CrossAttnDownBlock2D", "AttnDownBlock2D"]}, "attend to their own pixels"),
        ({**SD1, "num_attention_heads": 8}, "num_attention_heads"),
        ({**SD1, "made_up_later": 3}, "made_up_later=3"),
        ({**LDM, "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}, "cross attention"),
        ({**LDM, "resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups"),
        ({**LDM, "downsample_type": "resnet"}, "downsample_type"),
    ],
)
def test_other_networks_are_refused_by_name(fields, message):
    with pytest.raises(ConversionError, match=message):
        layouts.unet_sizes(fields, "unet/config.json")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({**KL, "_class_name": "AutoencoderTiny"}, "AutoencoderTiny.*supported are"),
        ({**KL, "latents_mean": [0.0]}, "latents_mean"),
        ({**KL, "_class_name": "VQModel", "norm_type": "spatial"}, "norm_type='spatial'"),
    ],
)
def test_other_autoencoders_are_refused_by_name(fields, message):
    with pytest.raises(ConversionError, match=message):
        layouts.autoencoder_sizes(fields, "vae/config.json")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "t5", "architectures": ["T5EncoderModel"]}, "T5EncoderModel.*supported are"),
        ({"architectures": ["CLIPTextModelWithProjection"]}, "CLIPTextModelWithProjection"),
        ({"hidden_act": "relu"}, "unknown hidden_act 'relu'"),
    ],
)
def test_other_text_encoders_are_refused_by_name(fields, message):
    with pytest.raises(ConversionError, match=message):
        layouts.text_sizes(fields, "text_encoder/config.json")


@pytest.mark.parametrize("name", ["UNet2DConditionModel", "UNet2DModel", "AutoencoderKL", "VQModel"])
def test_absent_fields_have_the_defaults_of_diffusers(name):
    _, diffusers, _ = libraries()
    arguments = inspect.signature(getattr(diffusers, name)).parameters.values()
    defaults = {argument.name: argument.default for argument in arguments}
    read = layouts.autoencoder_sizes if name in ("AutoencoderKL", "VQModel") else layouts.unet_sizes
    defaults = {"_class_name": name, **defaults}
    assert dataclasses.asdict(read(defaults, "config.json")) == dataclasses.asdict(read({"_class_name": name}, "x"))
