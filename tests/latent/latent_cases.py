"""Tiny random models, made in PyTorch by diffusers and transformers, and comparisons that the latent tests share."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pds_jax.convert.folder_weights import DIFFUSERS_STEM
from pds_jax.io import files
from pds_jax.latent import layouts, params
from pds_jax.latent.autoencoder import Autoencoder
from pds_jax.latent.unet2d import UNet2D

SMALL = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 8,
}
# Fields of tiny networks of every layout that is read.
UNETS = {
    "sd1": dict(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=2,
    ),
    "sd2": dict(
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=(1, 4),
        use_linear_projection=True,
        upcast_attention=True,
        layers_per_block=2,
        transformer_layers_per_block=(1, 2),
    ),
    "ldm": dict(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    ),
    "ldm_other": dict(
        in_channels=3,
        out_channels=3,
        down_block_types=("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D"),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        center_input_sample=True,
        mid_block_scale_factor=2.0,
        resnet_time_scale_shift="scale_shift",
        attn_norm_num_groups=2,
    ),
}
VAES = {
    "kl": dict(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        scaling_factor=0.3,
    ),
    "kl_other": dict(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        shift_factor=0.2,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        layers_per_block=2,
    ),
    "vq": dict(
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        num_vq_embeddings=16,
        vq_embed_dim=4,
    ),
}


def libraries():
    """torch, diffusers and transformers, or skip."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra: convert)")
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (extra: convert)")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: test)")
    return torch, diffusers, transformers


def randomise(torch, module, seed=0, scale=0.15):
    """Every parameter random, those that start at 0 or 1 too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            offset = 1.0 if parameter.ndim == 1 and bool((parameter == 1).all()) else 0.0
            parameter.copy_(offset + scale * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def make_unet(kind, **fields):
    torch, diffusers, _ = libraries()
    cls = diffusers.UNet2DModel if kind.startswith("ldm") else diffusers.UNet2DConditionModel
    return randomise(torch, cls(**{**SMALL, **UNETS[kind], **fields}))


def make_vae(kind, **fields):
    torch, diffusers, _ = libraries()
    cls = diffusers.VQModel if kind == "vq" else diffusers.AutoencoderKL
    return randomise(torch, cls(**{**SMALL, **VAES[kind], **fields}))


def load_unet(folder, dtype=jnp.float32, limit=1 << 30):
    """Our network and its parameters from a diffusers folder."""
    sizes = layouts.unet_sizes(files.read_json(folder / "config.json"), str(folder))
    model = UNet2D(sizes, limit, dtype)
    return model, params.load_params(folder, [DIFFUSERS_STEM], params.shapes_of(functools.partial(init_unet, model)))[0]


def init_unet(model):
    sizes = model.sizes
    size = 2 ** len(sizes.widths)
    context = None if sizes.context_width is None else jnp.zeros((1, 2, sizes.context_width))
    x = jnp.zeros((1, size, size, sizes.in_channels))
    return model.init(jax.random.key(0), x, jnp.zeros((1,)), context)


def load_vae(folder, dtype=jnp.float32):
    sizes = layouts.autoencoder_sizes(files.read_json(folder / "config.json"), str(folder))
    model = Autoencoder(sizes, dtype=dtype)
    image = jnp.zeros((1, 2 * sizes.factor, 2 * sizes.factor, sizes.image_channels))
    shapes = params.shapes_of(lambda: model.init(jax.random.key(0), image))
    return model, params.load_params(folder, [DIFFUSERS_STEM], shapes)[0]


def to_torch(x):
    import torch

    x = np.asarray(x)
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2) if x.ndim == 4 else x))


def from_torch(x):
    x = x.detach().float().numpy()
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x


def relative(ours, theirs):
    """max |a − b| / max |b|."""
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


TEXTS = [
    "a red cat",
    "A  Red\tCAT!!",
    "the cat's 2 hats, it's 25",
    "",
    "Zürich naïve café 漢字 🙂",
    "red<|endoftext|>cat <|startoftext|>",
    "hello! red!cat",
    " ".join(["red"] * 40),
]


def write_tokenizer(folder, pad="<|endoftext|>", length=12):
    """A small vocabulary of CLIP's form: all bytes, all bytes that end a word, a few merges, two special tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    merges = ["r e", "re d</w>", "c a", "ca t</w>", "t h", "th e</w>", "h a", "ha t", "hat s</w>", "! !</w>"]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair.split()) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps({**special, "pad_token": pad}))
    config = {**special, "pad_token": "<|endoftext|>", "model_max_length": length, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(tokens)


BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False)
LAYOUTS = {
    "sd1": dict(unet="sd1", vae="kl", pad="<|endoftext|>", act="quick_gelu", prediction="epsilon"),
    "sd2": dict(unet="sd2", vae="kl", pad="!", act="gelu", prediction="v_prediction"),
    "ldm": dict(unet="ldm", vae="vq", prediction="epsilon"),
}


def make_pipeline(folder, kind="sd1"):
    """A pipeline of diffusers with random weights, saved in a folder; returned in PyTorch."""
    torch, diffusers, transformers = libraries()
    layout = LAYOUTS[kind]
    unet, scheduler = (
        make_unet(layout["unet"]),
        diffusers.DDIMScheduler(**BETAS, prediction_type=layout["prediction"], set_alpha_to_one=False),
    )
    if kind == "ldm":
        pipe = diffusers.LDMPipeline(vqvae=make_vae("vq", vq_embed_dim=3), unet=unet, scheduler=scheduler)
    else:
        count = write_tokenizer(folder / "words", layout["pad"])
        text = transformers.CLIPTextConfig(
            vocab_size=count, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
            max_position_embeddings=12, hidden_act=layout["act"], bos_token_id=count - 2, eos_token_id=count - 1,
        )  # fmt: skip
        pipe = diffusers.StableDiffusionPipeline(
            vae=make_vae("kl"),
            unet=unet,
            text_encoder=randomise(torch, transformers.CLIPTextModel(text), scale=0.5),
            tokenizer=transformers.CLIPTokenizer.from_pretrained(folder / "words"),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder)
    return pipe
