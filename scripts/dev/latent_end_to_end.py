"""One command line from a folder of Stable Diffusion 1's size to an image, with the memory and time of each part.

    python scripts/dev/latent_end_to_end.py --nfe=4
    python scripts/dev/latent_end_to_end.py --nfe=4 --precision=bfloat16 --decode_tile=32

Makes the folder once: every tensor of the network, the decoder, the encoder and the text encoder in Stable Diffusion
1's shapes, float32, in shards, random (the images show nothing), with a small vocabulary. Then runs pds_jax
--mode=sample on it and prints each line of it with the seconds since the start, and the most memory that it held.
"""

from __future__ import annotations

import functools
import json
import pathlib
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from pds_jax.cli import scripts
from pds_jax.convert.folder_weights import DIFFUSERS_STEM, TRANSFORMERS_STEMS
from pds_jax.convert.safetensors_io import write_arrays
from pds_jax.convert.tree import Pair, source_shape
from pds_jax.io import files
from pds_jax.latent import cost, layouts
from pds_jax.latent.autoencoder import Autoencoder
from pds_jax.latent.clip import ClipText
from pds_jax.latent.folder import INDEX, init_autoencoder, init_unet
from pds_jax.latent.params import pairs_of, shapes_of
from pds_jax.latent.unet2d import UNet2D

_FOLDER = flags.DEFINE_string("folder", "runs/random_sd1", "The model; 4.1 GiB. Made if it is not there.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/random_sd1_image", "Of the run; emptied first.")
_NFE = flags.DEFINE_integer("nfe", 4, "Network evaluations; with guidance two a step.")
_PRECISION = flags.DEFINE_enum("precision", "float32", ["float32", "bfloat16"], "Of the networks.")
_TILE = flags.DEFINE_integer("decode_tile", None, "Latents of a side that are decoded at once.")

_SHARD = 256 << 20  # bytes
_TEXT = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
}
_SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}
_ROLES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "scheduler": ("diffusers", "PNDMScheduler"),
}


def make_folder(folder: pathlib.Path) -> None:
    """A pipeline of diffusers; ``model_index.json`` comes last."""
    unet = UNet2D(layouts.unet_sizes(cost.UNET, "Stable Diffusion 1"))
    vae = Autoencoder(layouts.autoencoder_sizes(cost.AUTOENCODER, "Stable Diffusion 1"))
    text = ClipText(layouts.text_sizes(_TEXT, "Stable Diffusion 1"))
    tokens = functools.partial(text.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    parts: dict[str, tuple[dict[str, Any], Callable[[], Any], str]] = {
        "unet": (cost.UNET, functools.partial(init_unet, unet), DIFFUSERS_STEM),
        "vae": (cost.AUTOENCODER, functools.partial(init_autoencoder, vae), DIFFUSERS_STEM),
        "text_encoder": (_TEXT, tokens, TRANSFORMERS_STEMS[0]),
    }
    for seed, (role, (fields, init, stem)) in enumerate(parts.items()):
        files.write_json(folder / role / "config.json", fields)
        write_shards(folder / role, stem, shapes_of(init), seed)
    files.write_json(folder / "scheduler" / "scheduler_config.json", _SCHEDULER)
    write_tokenizer(folder / "tokenizer")
    index = {"_class_name": "StableDiffusionPipeline", **{role: list(names) for role, names in _ROLES.items()}}
    files.write_json(folder / INDEX, index)


def write_shards(folder: pathlib.Path, stem: str, shapes: dict[str, tuple[int, ...]], seed: int) -> None:
    """Random weights in files of about ``_SHARD`` bytes, with their index."""
    rng = np.random.default_rng(seed)
    where: dict[str, str] = {}
    for number, pairs in enumerate(shards(pairs_of(shapes), shapes)):
        name = f"{stem}-{number:05d}.safetensors"
        write_arrays(folder / name, {pair.source: draw(rng, pair, shapes[pair.target]) for pair in pairs}, {})
        where |= {pair.source: name for pair in pairs}
    files.write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {}, "weight_map": where})


def shards(pairs: list[Pair], shapes: dict[str, tuple[int, ...]]) -> Iterator[list[Pair]]:
    """Parameters in groups."""
    group: list[Pair] = []
    for pair in pairs:
        group.append(pair)
        if sum(4 * int(np.prod(shapes[pair.target])) for pair in group) > _SHARD:
            yield group
            group = []
    if group:
        yield group


def draw(rng: np.random.Generator, pair: Pair, shape: tuple[int, ...]) -> np.ndarray:
    """Scales 1, biases 0, all else of the size that keeps activations at about 1."""
    full = source_shape(shape, pair)
    if len(full) == 1:
        return np.full(full, float(pair.target.endswith("scale")), np.float32)
    return rng.standard_normal(full, np.float32) / np.float32(np.sqrt(np.prod(full[1:])))


def write_tokenizer(folder: pathlib.Path) -> None:
    """Bytes as tokens: CLIP's form without merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    files.write_json(folder / "vocab.json", {token: number for number, token in enumerate(tokens)})
    files.atomic_write(folder / "merges.txt", lambda file: file.write(b"#version: 0.2\n"))
    files.write_json(folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77})


def main(_: list[str]) -> None:
    """Make the folder, run the command, say what it took."""
    folder, workdir = pathlib.Path(_FOLDER.value), pathlib.Path(_WORKDIR.value)
    if not (folder / INDEX).is_file():
        make_folder(folder)
    shutil.rmtree(workdir, ignore_errors=True)
    words = ["--mode=sample", f"--checkpoint={folder}", f"--workdir={workdir}", "--prompt=a red cat", "--seeds=0"]
    words += [f"--nfe={_NFE.value}", f"--precision={_PRECISION.value}"]
    words += [] if _TILE.value is None else [f"--decode_tile={_TILE.value}"]
    command = [sys.executable, "-u", "-m", "pds_jax.main", *words]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            print(f"{time.perf_counter() - start:7.1f} s  {line}", end="", flush=True)
    if child.returncode:
        raise SystemExit(child.returncode)
    manifest = files.read_json(workdir / "samples" / "manifest.json")
    result = {name: manifest[name] for name in ("nfe", "compile_seconds", "seconds_per_image")}
    result["all_seconds"] = time.perf_counter() - start
    result["peak_mib"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(json.dumps(result))


if __name__ == "__main__":
    scripts.run(main)
