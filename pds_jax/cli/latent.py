"""``--mode=sample`` of a latent diffusion model in a diffusers folder, with a text or a file of them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from pds_jax import assembly, classes, statistics
from pds_jax.cli.options import RunOptions, with_fields
from pds_jax.latent.captions import read_captions
from pds_jax.latent.folder import INDEX, is_pipeline
from pds_jax.latent.trained import LatentModel, load
from pds_jax.types import PdsError

GUIDANCE = 7.5
_AT_ONCE = 4


def names_pipeline(options: RunOptions, flag: str | None) -> bool:
    """Whether the weights are a latent diffusion model.

    Raises:
      PdsError: they are not, but the flag is given, which only such a model takes.
    """
    found = is_pipeline(options.weights)
    if flag and not found:
        raise PdsError(
            f"--{flag} belongs to latent diffusion models: {options.weights} is no folder of diffusers with {INDEX} "
            "and an autoencoder"
        )
    return found


@dataclasses.dataclass(frozen=True)
class Job:
    """A latent model with what the options say about it.

    Attributes:
      model: the model.
      given: the score of some seeds' texts; None for a model without text.
      guided: weight and interval of the guidance, for ``assembly.plan``.
      identity: what decides the images besides plan and seeds.
    """

    model: LatentModel
    given: assembly.Given | None
    guided: dict[str, Any]
    identity: dict[str, Any]


def job(options: RunOptions) -> Job:
    """Load the model and read the prompts.

    Raises:
      PdsError: what ``latent.trained.load`` refuses, configuration other than the sampler's, prompts that are
        missing, too few or for a model without text.
    """
    if options.config is not None or options.raw_weights:
        flag = "config" if options.config is not None else "raw_weights"
        raise PdsError(f"--{flag} has no effect here: {options.weights} says by itself what it is; leave it out")
    _refuse(options, ("classifier", "classifier_config", "classifier_scale"), "no classifier")
    for field, _ in options.overrides:
        if field.partition(".")[0] not in ("sampling", "pds"):
            raise PdsError(
                f"--config.{field} has no effect here: {options.weights} says by itself what it is, and only "
                "--config.sampling and --config.pds can be set; leave it out"
            )
    path = options.sampler.statistics
    model = load(
        options.weights,
        size=options.image_size,
        statistics=None if path is None else statistics.load(path),
        dtype=jnp.dtype(options.dtype or "float32"),
        tile=options.decode_tile or None,
    )
    if options.overrides:
        config = with_fields(model.trained.config, options.overrides)
        model = dataclasses.replace(model, trained=dataclasses.replace(model.trained, config=config))
    for note in model.pipeline.notes:
        print(note)
    _report(model)
    chosen = {} if options.decode_tile is None else {"decode_tile": options.decode_tile}
    if model.pipeline.text is None:
        _refuse(options, ("prompt", "prompts", "negative_prompt", "guidance", "guidance_interval", "labels"), "no text")
        return Job(model, None, {}, chosen)
    _refuse(options, ("labels",), "a text instead of classes")
    prompts, negative = _prompts(options), options.negative_prompt or ""
    guided: dict[str, Any] = {
        "guidance": GUIDANCE if options.guidance is None else options.guidance,
        "guidance_interval": options.guidance_interval or classes.EVERYWHERE,
    }
    given = model.given(_at(prompts), negative=negative, cache=text_cache(), **guided)
    text = {"prompt": options.prompt} if options.prompt is not None else {"prompts_sha256": digest(prompts)}
    return Job(model, given, guided, {**text, "negative_prompt": negative, **chosen})


def _refuse(options: RunOptions, flags: Sequence[str], takes: str) -> None:
    for name in flags:
        if getattr(options, name) is not None:
            raise PdsError(f"--{name} has no effect here: {options.weights} takes {takes}; leave it out")


def digest(prompts: Sequence[str]) -> str:
    """SHA-256 of prompts."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()


def at_once(options: RunOptions) -> int | None:
    """``batch_size`` for a latent model, whose images need more memory than others, if the options leave it open."""
    if options.batch_size is not None or options.max_batch != assembly.MAX_BATCH:
        return options.batch_size
    return min(_AT_ONCE, len(options.seeds))


def text_cache() -> pathlib.Path:
    """Where states of the text encoder are kept."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(root) / "pds_jax" / "text"


def _prompts(options: RunOptions) -> list[str]:
    if (options.prompt is None) == (options.prompts is None):
        raise PdsError(
            f"{options.weights} makes images of texts: give one of --prompt='a red cat' and --prompts=FILE (a prompt a "
            "line, seed i takes prompt i)"
        )
    if options.prompt is not None:
        return [options.prompt]
    assert options.prompts is not None
    prompts = read_captions(options.prompts)
    if max(options.seeds) >= len(prompts):
        raise PdsError(
            f"--prompts={options.prompts} holds {len(prompts)} prompts and seed i takes prompt i, but seed "
            f"{max(options.seeds)} is asked for; give --seeds=0-{len(prompts) - 1}, or fewer"
        )
    return prompts


def _at(prompts: Sequence[str]) -> Callable[[int], str]:
    """Prompt of a seed; the seeds that --alpha=tune tries take them over and over."""
    return lambda seed: prompts[seed % len(prompts)]


def _report(model: LatentModel) -> None:
    """What the model is, and the memory that it and its decoder need."""
    parts = [f"{count / 1e6:.3g} M parameters in {name}" for name, count in model.parameters().items()]
    height, width, _ = model.trained.shape
    need = model.codec.decoder_bytes((height, width))
    tiles = "" if model.codec.tile is None else f", in tiles of {model.codec.tile}"
    size = "x".join(map(str, model.trained.image_shape[:2]))
    print(f"{', '.join(parts)}; images of {size} from latents of {height}x{width}")
    print(f"parameters take {model.parameter_bytes() / 2**20:.0f} MiB; decoding{tiles} {need / 2**20:.0f} MiB more")
