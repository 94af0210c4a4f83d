"""Weights of a folder of diffusers: one file, an index with its shards, or a variant of either such as fp16."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Mapping

from pds_jax.convert import safetensors_io, torch_files
from pds_jax.convert.pickles import Tensor
from pds_jax.convert.tree import ConversionError, Leaf, Report
from pds_jax.io import files
from pds_jax.types import PdsError

STEM = "diffusion_pytorch_model"
_WHOLE = re.compile(rf"{STEM}(?:\.(?P<variant>[\w-]+))?\.(?P<form>safetensors|bin)")
_INDEX = re.compile(rf"{STEM}\.(?P<form>safetensors|bin)\.index(?:\.(?P<variant>[\w-]+))?\.json")
_RAW = "non_ema"  # the variant that keeps raw weights beside a moving average
_SHARD = re.compile(r"-\d+-of-\d+")


@dataclasses.dataclass(frozen=True)
class _Candidate:
    path: pathlib.Path
    variant: str | None
    rank: int  # one file before shards, safetensors before pickles


def find(folder: pathlib.Path, use_ema: bool, report: Report) -> pathlib.Path:
    """The weights file or index of a folder; the report gets what it is if it is a variant.

    Raises ConversionError if there is none, or if several variants and no plain one could be meant.
    """
    names = sorted(path.name for path in folder.iterdir())
    found = [candidate for name in names if (candidate := _candidate(folder / name)) is not None]
    variants = {candidate.variant for candidate in found}
    if not found:
        shards = [name for name in names if _SHARD.search(name)]
        what = f"{len(shards)} shards without their index" if shards else ", ".join(names[:8]) or "nothing"
        raise ConversionError(
            f"{folder} has neither {STEM}.safetensors nor {STEM}.bin, nor an index ({STEM}.safetensors.index.json) or "
            f"variant (such as {STEM}.fp16.safetensors) of them; it holds {what}"
        )
    if not use_ema and _RAW in variants:
        variant: str | None = _RAW
    elif None in variants:
        variant = None
    elif len(variants) == 1:
        (variant,) = variants
    else:
        kinds = ", ".join(sorted(map(str, variants)))
        raise ConversionError(f"{folder} has the variants {kinds} and no plain weights; give the file that you want")
    chosen = min((candidate for candidate in found if candidate.variant == variant), key=lambda c: c.rank)
    if variant is not None:
        report.notes.append(f"read the variant {variant!r}, {chosen.path.name}")
    if _RAW in variants:
        report.weights = "raw" if variant == _RAW else "ema"
    return chosen.path


def variant_of(folder: pathlib.Path) -> str | None:
    """The variant that is read from a folder, None for the plain weights."""
    candidate = _candidate(find(folder, True, Report("diffusers", str(folder), "")))
    return None if candidate is None else candidate.variant


def _candidate(path: pathlib.Path) -> _Candidate | None:
    whole, index = _WHOLE.fullmatch(path.name), _INDEX.fullmatch(path.name)
    match = whole or index
    if match is None or not path.is_file() or (whole is not None and _SHARD.search(path.name)):
        return None
    return _Candidate(path, match["variant"], 2 * (match["form"] == "bin") + (index is not None))


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[dict[str, Leaf]]:
    """Leaves of a weights file, or of all shards of an index, by name; they can be read until the context ends.

    Raises ConversionError if a file is damaged or missing, or the shards hold other names than the index says.
    """
    place = pathlib.Path(path)
    with contextlib.ExitStack() as stack:
        if place.suffix == ".json":
            yield _joined(place, stack)
        else:
            yield _leaves(place, stack)


def _leaves(path: pathlib.Path, stack: contextlib.ExitStack) -> dict[str, Leaf]:
    if path.suffix == ".safetensors":
        return safetensors_io.leaves(path)
    state, leaf = stack.enter_context(torch_files.opened(path))
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConversionError(f"{path}: not a dictionary of tensors")
    return {str(name): leaf(value) for name, value in state.items()}


def _joined(index: pathlib.Path, stack: contextlib.ExitStack) -> dict[str, Leaf]:
    places = _weight_map(index)
    shards = sorted(set(places.values()))
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise ConversionError(f"{index} names {len(shards)} files; {', '.join(missing[:4])} of them are not beside it")
    found: dict[str, Leaf] = {}
    for shard in shards:
        leaves = _leaves(index.parent / shard, stack)
        expected = {name for name, place in places.items() if place == shard}
        if set(leaves) != expected:
            wrong = sorted(set(leaves) ^ expected)[0]
            raise ConversionError(f"{index.parent / shard} holds other names than {index.name} says, such as {wrong!r}")
        found.update(leaves)
    return found


def _weight_map(index: pathlib.Path) -> Mapping[str, str]:
    try:
        fields = files.read_json(index)
    except PdsError as error:
        raise ConversionError(str(error)) from error
    places = fields.get("weight_map") if isinstance(fields, dict) else None
    if not isinstance(places, dict) or not places:
        raise ConversionError(f"{index} holds no weight_map")
    for name in places.values():
        if not isinstance(name, str) or name in ("", ".", "..") or re.search(r"[/\\]", name) or name.endswith(".json"):
            raise ConversionError(f"{index} names {name!r}, which is no file beside it")
    return places
