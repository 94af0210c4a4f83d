"""Folders of diffusers that hold an NCSN++: a ``UNet2DModel`` of skip blocks, alone or inside a pipeline.

Such a model is NCSN++ with ``progressive='output_skip'``, ``progressive_input='input_skip'``; its attention blocks
normalise in 32 groups whatever their width, so narrow ones compute something else and are refused.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from pds_jax.convert import diffusers_weights, safetensors_io
from pds_jax.convert.folder_weights import DIFFUSERS_STEM, opened_weights
from pds_jax.convert.names import diffusers_pairs
from pds_jax.convert.tree import ConversionError, Leaf, Report, Shape, assemble, check_params, template
from pds_jax.convert.weight_sets import AS_SAVED, Expected, choose, is_average
from pds_jax.io import files
from pds_jax.models.utils import image_size

CLASS = "UNet2DModel"
_SILU = ("silu", "swish")  # two names of one function
_JSON_LIMIT = 1 << 20

# Options that our network needs in score_sde's config to be a UNet2DModel of skip blocks.
_OURS: dict[str, Any] = {
    "name": "ncsnpp",
    "resblock_type": "biggan",
    "progressive": "output_skip",
    "progressive_input": "input_skip",
    "progressive_combine": "sum",
    "embedding_type": "fourier",
    "nonlinearity": "swish",
    "fir": True,
    "fir_kernel": (1, 3, 3, 1),
    "skip_rescale": True,
    "conditional": True,
    "scale_by_sigma": True,
}
# What an absent field of config.json means, as UNet2DModel's constructor has it.
_DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "layers_per_block": 2,
    "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
}


def unet_folder(path: str | os.PathLike[str], use_ema: bool = True) -> pathlib.Path | None:
    """The folder with the UNet's ``config.json``: the path itself, one of its folders, or that of a weights file.

    A training of diffusers keeps the moving average in ``unet_ema`` beside ``unet``.
    """
    given = pathlib.Path(path)
    if not given.is_dir():
        return given.parent if _class_of(given.parent / "config.json") == CLASS else None
    if _class_of(given / "config.json") == CLASS:
        return given
    averages, raw = _unets_in(given)
    first, second = (averages, raw) if use_ema else (raw, averages)
    return next(iter(first or second), None)


def pixel_unet(path: str | os.PathLike[str], use_ema: bool = True) -> pathlib.Path | None:
    """The folder of a UNet that is not NCSN++ but of plain blocks, as DDPM's are; arguments as :func:`unet_folder`."""
    folder = unet_folder(path, use_ema) if pathlib.Path(path).exists() else None
    if folder is None:
        return None
    blocks = _read_fields(folder / "config.json").get("down_block_types")
    plain = isinstance(blocks, list) and not any("Skip" in str(block) for block in blocks)
    return folder if plain else None


def _unets_in(folder: pathlib.Path) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """(averaged, raw) UNets that lie in a folder, ``unet`` first."""
    try:
        inner = sorted(folder.iterdir(), key=lambda path: (path.name != "unet", path.name))
    except OSError as error:
        raise ConversionError(f"cannot read {folder}: {error}") from error
    named = [path for path in inner if "unet" in path.name.lower() or is_average(path.name)]
    unets = [path for path in named if _class_of(path / "config.json") == CLASS]
    return [path for path in unets if is_average(path.name)], [path for path in unets if not is_average(path.name)]


def _class_of(path: pathlib.Path) -> Any:
    try:
        return _read_fields(path).get("_class_name")
    except ConversionError:
        return None


def _read_fields(path: pathlib.Path) -> dict[str, Any]:
    """A small JSON dictionary."""
    try:
        if path.stat().st_size > _JSON_LIMIT:
            raise ConversionError(f"{path} is larger than {_JSON_LIMIT} bytes; no configuration is")
        fields = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ConversionError(f"cannot read {path} as JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ConversionError(f"{path} holds no dictionary")
    return fields


def load(
    path: str | os.PathLike[str], config: Any, shapes: Mapping[str, Shape], use_ema: bool
) -> tuple[dict[str, Any], Report]:
    """Parameters from a diffusers folder.

    Args:
      path: the pipeline's folder, a training's with ``unet`` and ``unet_ema``, the folder of one UNet, or a file of
        weights or an index in it.
      config: our config of the same network; every option is compared with ``config.json``.
      shapes: path and shape of every parameter of the network.
      use_ema: the moving average where it lies beside the raw weights, or those.

    Returns:
      (parameter tree, report).

    Raises:
      ConversionError: damaged, of another network, or one that computes otherwise than NCSN++.
    """
    folder = unet_folder(path, use_ema)
    if folder is None:
        raise ConversionError(f"{path}: no config.json of a {CLASS} here or in 'unet'")
    if pixel_unet(path, use_ema) is not None:
        raise ConversionError(
            f"{folder / 'config.json'} is a {CLASS} without skip blocks, which says by itself what it is and is not "
            "converted: give its folder to --mode=sample or pds_jax.load, without a configuration"
        )
    report = Report("diffusers", str(path), AS_SAVED)
    compare(read_config(folder / "config.json"), config, str(folder / "config.json"))
    _note_scheduler(folder.parent / "scheduler" / "scheduler_config.json", config, report)
    given = pathlib.Path(path)
    weights = given if given.is_file() else diffusers_weights.find(folder, use_ema, report)
    note_folder(given, folder, use_ema, report)
    with opened_weights(weights) as sources:
        return from_leaves(sources, config, shapes, report, use_ema), report


def from_leaves(
    sources: Mapping[str, Leaf], config: Any, shapes: Mapping[str, Shape], report: Report, use_ema: bool
) -> dict[str, Any]:
    """Parameters from the leaves of a UNet2DModel by name. Raises ConversionError as :func:`load` does."""
    return from_arrays(_without_twin(dict(sources), report), Leaf, _itself, config, shapes, report, use_ema, alone=True)


def from_arrays(
    value: Any,
    kind: type,
    leaf: Callable[[Any], Leaf],
    config: Any,
    shapes: Mapping[str, Shape],
    report: Report,
    use_ema: bool,
    *,
    alone: bool = False,
) -> dict[str, Any]:
    """Parameters from what a file holds, whose arrays have the names of diffusers' UNet2DModel.

    Raises NoWeights if no array has such names, ConversionError if they are not those of the config's network.
    """
    pairs = diffusers_pairs(config, shapes)
    aliases = {alias: pair.source for pair in pairs for alias in pair.aliases}
    expected = Expected([pair.source for pair in pairs], aliases, ordered=False)
    found = choose(value, kind, expected, report, use_ema, alone=alone)
    check(config)
    return assemble(pairs, {name: leaf(array) for name, array in found.arrays.items()}, shapes, report)


def _itself(leaf: Leaf) -> Leaf:
    return leaf


def note_folder(given: pathlib.Path, folder: pathlib.Path, use_ema: bool, report: Report) -> None:
    """Say which of a raw and an averaged UNet was read."""
    averages, raw = _unets_in(folder.parent)
    if not averages or folder not in (*averages, *raw):
        return
    if not use_ema and folder in averages:
        raise ConversionError(
            f"{given}: the raw weights are asked for; it holds the moving average {folder.name!r} only"
        )
    if use_ema and len(averages) > 1 and folder != given:
        names = ", ".join(repr(path.name) for path in averages)
        raise ConversionError(f"{given}: {len(averages)} moving averages could be meant: {names}; give one's folder")
    report.weights = "ema" if folder in averages else "raw"
    others = raw if folder in averages else averages
    if others:
        what, other = ("moving average", "raw weights") if folder in averages else ("raw weights", "moving average")
        report.notes.append(f"read the {what} {folder.name!r}, not the {other} {others[0].name!r}")


def _without_twin(sources: dict[str, Leaf], report: Report) -> dict[str, Leaf]:
    """Drop the second copy of the Fourier frequencies, which some versions of diffusers save."""
    twin, weight = sources.get("time_proj.W"), sources.get("time_proj.weight")
    if twin is None or weight is None:
        return sources
    if twin.shape != weight.shape or not np.array_equal(twin.read(), weight.read()):
        raise ConversionError(f"{report.path}: 'time_proj.W' and 'time_proj.weight' should be equal and are not")
    report.unused.append("time_proj.W: the same as time_proj.weight")
    return {name: leaf for name, leaf in sources.items() if name != "time_proj.W"}


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """``config.json`` of a UNet2DModel with the defaults filled in.

    Args:
      path: the file.

    Returns:
      Its fields.

    Raises:
      ConversionError: it is no such file or lacks the description of the blocks.
    """
    fields = _read_fields(path)
    if fields.get("_class_name") != CLASS:
        raise ConversionError(f"{path} does not describe a {CLASS}")
    for name in ("block_out_channels", "down_block_types", "up_block_types"):
        if not isinstance(fields.get(name), list):
            raise ConversionError(f"{path}: {name!r} is missing or not a list")
    return {**_DEFAULTS, **fields}


def compare(theirs: Mapping[str, Any], config: Any, where: str) -> None:
    """Check that a UNet2DModel's config.json and our config describe the same computation.

    Args:
      theirs: fields of config.json.
      config: our config.
      where: the file's name, for messages.

    Raises:
      ConversionError: naming the first field that differs and both values.
    """
    for name, value in expected_config(config).items():
        found = theirs[name]
        if (name == "norm_num_groups" and _same_groups(found, config)) or (name == "sample_size" and found is None):
            continue
        if name == "act_fn" and found in _SILU:
            continue
        if not _equal(found, value):
            raise ConversionError(
                f"{where}: {name} is {found!r}, but our config stands for {value!r}; "
                "start from configs/ve/church_ncsnpp_continuous.py and set its model and data fields accordingly"
            )
    refuse_narrow_attention(config)


def _equal(found: Any, value: Any) -> bool:
    if isinstance(value, float) and isinstance(found, int | float):
        return abs(found) < 2**53 and math.isclose(found, value, rel_tol=1e-6)
    return bool(found == value) and isinstance(found, bool) == isinstance(value, bool)


def _same_groups(found: Any, config: Any) -> bool:
    """A number is fine if it is what NCSN++ has at the widths where diffusers uses it: the first and the last."""
    widths = (config.model.nf, config.model.nf * config.model.ch_mult[-1])
    return all(found == min(width // 4, 32) for width in widths)


def expected_config(config: Any) -> dict[str, Any]:
    """Fields of config.json that our config stands for.

    Args:
      config: our config.

    Returns:
      ``{field: value}``, complete enough for UNet2DModel.

    Raises:
      ConversionError: the network is of a kind that UNet2DModel cannot be.
    """
    model = config.model
    for name, value in _OURS.items():
        found = model.get(name)
        found = tuple(found) if isinstance(value, tuple) and found is not None else found
        if found != value:
            raise ConversionError(f"diffusers has only NCSN++ with model.{name}={value!r}; this config has {found!r}")
    if config.data.num_channels != 3:
        raise ConversionError(f"diffusers' skip blocks have 3 channels; this config has {config.data.num_channels}")
    size = image_size(config)
    attend = [size[0] // 2**level in tuple(model.attn_resolutions) for level in range(len(model.ch_mult))]
    return {
        "sample_size": size[0] if size[0] == size[1] else list(size),
        "in_channels": 3,
        "out_channels": 3,
        "center_input_sample": not config.data.centered,
        "time_embedding_type": "fourier",
        "time_embedding_dim": None,
        "block_out_channels": [model.nf * mult for mult in model.ch_mult],
        "layers_per_block": model.num_res_blocks,
        "down_block_types": [f"{'Attn' * on}SkipDownBlock2D" for on in attend],
        "up_block_types": [f"{'Attn' * on}SkipUpBlock2D" for on in reversed(attend)],
        "mid_block_type": "UNetMidBlock2D",
        "mid_block_scale_factor": math.sqrt(2),
        "act_fn": "silu",
        "attention_head_dim": None,
        "norm_num_groups": None,
        "attn_norm_num_groups": None,
        "norm_eps": 1e-6,
        "resnet_time_scale_shift": "default",
        "add_attention": True,
        "class_embed_type": None,
        "num_class_embeds": None,
    }


def check(config: Any) -> None:
    """Refuse what UNet2DModel cannot be. Raises ConversionError naming the option."""
    expected_config(config)
    refuse_narrow_attention(config)


def check_place(folder: pathlib.Path) -> None:
    """Refuse a folder with a UNet that would be read before the one in ``unet``; ConversionError names it."""
    found = unet_folder(folder) if folder.is_dir() else None
    if found not in (None, folder / "unet"):
        raise ConversionError(
            f"{found} holds a UNet that is read before {folder / 'unet'}; move it away, or choose another folder"
        )


def refuse_narrow_attention(config: Any) -> None:
    """Refuse widths at which diffusers' attention blocks normalise in other groups than NCSN++.

    diffusers takes 32 groups for the attention, and min(a + b // 4, 32) instead of min((a + b) // 4, 32) for the
    residual blocks beside it on the way up, a and b being the two widths that are concatenated.

    Args:
      config: our config.

    Raises:
      ConversionError: naming the block and both numbers of groups.
    """
    for place, theirs, ours in _groups(config):
        if theirs != ours:
            raise ConversionError(
                f"at this width diffusers' {place} normalises in {theirs} groups and NCSN++ in {ours}, so the two "
                "compute different things from the same weights; attention levels need at least 128 channels there"
            )


def _groups(config: Any) -> Iterator[tuple[str, int, int]]:
    """(place, groups in diffusers, groups in NCSN++) of the layers beside and in the skip blocks' attention."""
    model = config.model
    widths = [model.nf * mult for mult in model.ch_mult]
    previous = widths[-1]
    for level in reversed(range(len(widths))):
        width, below = widths[level], widths[max(level - 1, 0)]
        if image_size(config)[0] // 2**level in tuple(model.attn_resolutions):
            yield f"attention at level {level}", 32, min(width // 4, 32)
            for i in range(model.num_res_blocks + 1):
                a = previous if i == 0 else width
                b = below if i == model.num_res_blocks else width
                yield f"up block {i} at level {level}", min(a + b // 4, 32), min((a + b) // 4, 32)
        previous = width


def _note_scheduler(path: pathlib.Path, config: Any, report: Report) -> None:
    """Note where the pipeline's noise schedule differs from the config's."""
    if not path.is_file():
        return
    fields = _read_fields(path)
    ours = {"sigma_min": "sigma_min", "sigma_max": "sigma_max", "num_train_timesteps": "num_scales"}
    for name, field in ours.items():
        found = fields.get(name)
        if found is not None and not _equal(found, float(config.model[field])):
            report.notes.append(f"the scheduler has {name}={found}, the config model.{field}={config.model[field]}")


def export(params: Mapping[str, Any], config: Any, path: str | os.PathLike[str]) -> None:
    """Write a pipeline folder that ``diffusers.ScoreSdeVePipeline.from_pretrained`` loads.

    Args:
      params: the parameter tree.
      config: the configuration it belongs to.
      path: the folder.

    Raises:
      PdsError: diffusers has no such network, parameters and configuration do not agree, or the folder cannot be
        written.
    """
    from pds_jax.convert.score_sde_torch import to_torch

    folder = pathlib.Path(path)
    fields = expected_config(config)
    refuse_narrow_attention(config)
    flat = check_params(params, config)
    arrays = to_torch(flat, diffusers_pairs(config, template(config)))
    files.check_writable(folder / "unet" / "config.json")
    (folder / "unet" / "config.json").unlink(missing_ok=True)  # written last: interrupted, there is no UNet
    safetensors_io.write_arrays(folder / "unet" / f"{DIFFUSERS_STEM}.safetensors", arrays, {"format": "pt"})
    files.write_json(folder / "scheduler" / "scheduler_config.json", _scheduler(config))
    files.write_json(
        folder / "model_index.json",
        {
            "_class_name": "ScoreSdeVePipeline",
            "scheduler": ["diffusers", "ScoreSdeVeScheduler"],
            "unet": ["diffusers", CLASS],
        },
    )
    files.write_json(folder / "unet" / "config.json", {"_class_name": CLASS, **fields})


def _scheduler(config: Any) -> dict[str, Any]:
    return {
        "_class_name": "ScoreSdeVeScheduler",
        "num_train_timesteps": config.model.num_scales,
        "sigma_min": config.model.sigma_min,
        "sigma_max": config.model.sigma_max,
        "snr": config.sampling.snr,
        "sampling_eps": 1e-5,
        "correct_steps": config.sampling.n_steps_each,
    }
