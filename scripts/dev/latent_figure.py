"""docs/figures/latent_parity.png: a text-to-image pipeline of random weights in diffusers and here, at the same noise.

    python scripts/dev/latent_figure.py

One column a prompt; rows: diffusers' StableDiffusionPipeline with DDIM in PyTorch, the same here, and their difference
times 10000, around gray. Prints the largest difference.
"""

from __future__ import annotations

import json
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np
from absl import flags
from latent_end_to_end import write_tokenizer

from pds_jax import sampling
from pds_jax.cli import scripts
from pds_jax.io import images
from pds_jax.latent.codec import Codec
from pds_jax.latent.folder import load_pipeline
from pds_jax.latent.score import get_score, get_sde, guided

_OUT = flags.DEFINE_string("out", "docs/figures/latent_parity.png", "The picture.")
_STEPS = flags.DEFINE_integer("steps", 6, "Of DDIM.")

PROMPTS = ("a red cat", "the hats", "a blue house at night", "")
_SIDE, _GUIDANCE = 16, 7.5
_SMALL = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": _SIDE}


def random_pipeline(folder: pathlib.Path) -> Any:
    """A pipeline of Stable Diffusion 1's layout with a small network, saved in a folder."""
    import diffusers
    import torch
    import transformers

    torch.manual_seed(0)
    write_tokenizer(folder / "words")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "words")
    count = len(tokenizer)
    text = transformers.CLIPTextConfig(
        vocab_size=count, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=77, bos_token_id=count - 2, eos_token_id=count - 1,
    )  # fmt: skip
    pipe = diffusers.StableDiffusionPipeline(
        unet=diffusers.UNet2DConditionModel(
            **_SMALL,
            cross_attention_dim=32,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
        vae=diffusers.AutoencoderKL(
            **_SMALL, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2
        ),
        text_encoder=transformers.CLIPTextModel(text),
        tokenizer=tokenizer,
        scheduler=diffusers.DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False,
            set_alpha_to_one=False,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    with torch.no_grad():
        for module in (pipe.unet, pipe.vae, pipe.text_encoder):
            for parameter in module.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder)
    return pipe


def theirs(pipe: Any, z: np.ndarray) -> np.ndarray:
    """Images by PyTorch."""
    import torch

    words = {"num_inference_steps": _STEPS.value, "guidance_scale": _GUIDANCE, "output_type": "np"}
    side = 2 * _SIDE
    with torch.no_grad():
        latents = torch.from_numpy(z.transpose(0, 3, 1, 2).copy())
        found: np.ndarray = pipe(prompt=list(PROMPTS), latents=latents, height=side, width=side, **words).images
    return found


def ours(folder: pathlib.Path, z: np.ndarray, levels: list[int]) -> np.ndarray:
    """Images by our sampler at the levels of training that the scheduler visits, ending at level 0 as it does."""
    pipeline = load_pipeline(folder)
    assert pipeline.text is not None
    sde, states = get_sde(pipeline), pipeline.text.encode([*PROMPTS, ""]).states
    times = [(level + 1) / len(pipeline.alpha_bar) for level in (*levels, 0)]
    sampler = sampling.get_pc_sampler(sde, z.shape[1:], "ddim", "none", grid=times, denoise=False)
    score = guided(get_score(pipeline), sde, states[:-1], states[-1], _GUIDANCE)
    z = z * np.asarray(sde.std(np.float32(sde.T)) / sde.std(np.float32(times[0])))  # diffusers starts with variance 1
    run = jax.jit(lambda sampler, z, score: sampler.result(sampler.run_all(sampler.start(z), score)))
    return Codec(pipeline.autoencoder, pipeline.autoencoder_params).decode(run(sampler, z, score))


def main(_: list[str]) -> None:
    """Draw both and write the picture."""
    z = np.random.default_rng(3).standard_normal((len(PROMPTS), _SIDE, _SIDE, 4), np.float32)
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        pipe = random_pipeline(folder)
        expected = theirs(pipe, z)
        found = np.clip(ours(folder, z, pipe.scheduler.timesteps.tolist()), 0, 1)
    rows = [expected, found, np.clip(0.5 + 1e4 * (found - expected), 0, 1)]
    picture = images.enlarge(images.to_uint8(np.concatenate(rows)), 3)
    images.save_png(_OUT.value, images.grid(picture, len(PROMPTS)))
    print(json.dumps({"largest_difference": float(np.abs(found - expected).max()), "figure": _OUT.value}))


if __name__ == "__main__":
    scripts.run(main)
