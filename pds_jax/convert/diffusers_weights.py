"""Which weights of a UNet's folder to read: the plain ones, or one of the variants that lie there."""

from __future__ import annotations

import pathlib
import re

from pds_jax.convert.folder_weights import DIFFUSERS_STEM, VARIANTS, find_weights
from pds_jax.convert.tree import ConversionError, Report

_SUFFIX = r"(?:safetensors|bin)"
_FILES = re.compile(
    rf"{DIFFUSERS_STEM}(?:\.(?P<whole>[\w-]+))?\.{_SUFFIX}|{DIFFUSERS_STEM}\.{_SUFFIX}\.index(?:\.(?P<index>[\w-]+))?\.json"
)
_SHARD = re.compile(r"-\d+-of-\d+")
_RAW = "non_ema"  # the variant that keeps raw weights beside a moving average


def find(folder: pathlib.Path, use_ema: bool, report: Report) -> pathlib.Path:
    """The weights file or index of a folder; the report says which variant it is.

    Raises ConversionError if there is none, or if several variants could be meant.
    """
    variant = variant_of(folder, use_ema)
    path = find_weights(folder, (DIFFUSERS_STEM,), variant or "")
    if variant is not None:
        report.notes.append(f"read the variant {variant!r}, {path.name}")
    if _RAW in _variants(folder):
        report.weights = "raw" if variant == _RAW else "ema"
    return path


def variant_of(folder: pathlib.Path, use_ema: bool) -> str | None:
    """The variant to read from a folder, None for the plain weights. Raises ConversionError as :func:`find` does."""
    variants = _variants(folder)
    if not use_ema and _RAW in variants:
        return _RAW
    if "" in variants:
        return None
    known = [name for name in VARIANTS if name in variants] or sorted(variants)
    if not known:
        names = sorted(path.name for path in folder.iterdir())
        shards = [name for name in names if _SHARD.search(name)]
        what = f"{len(shards)} shards without their index" if shards else ", ".join(names[:8])
        raise ConversionError(
            f"{folder} holds neither {DIFFUSERS_STEM}.safetensors nor .bin, nor an index "
            f"({DIFFUSERS_STEM}.safetensors.index.json) or variant ({DIFFUSERS_STEM}.fp16.safetensors) of them; "
            f"it has: {what}"
        )
    if len(known) > 1 and known[0] not in VARIANTS:
        raise ConversionError(
            f"{folder} has the variants {', '.join(known)} and no plain weights; give the file you want"
        )
    return known[0]


def _variants(folder: pathlib.Path) -> set[str]:
    """Variants of whole files and indices in a folder, "" for the plain weights."""
    found = set()
    for path in folder.iterdir():
        match = _FILES.fullmatch(path.name)
        if match is not None and path.is_file() and not (match["whole"] and _SHARD.search(path.name)):
            found.add(match["whole"] or match["index"] or "")
    return found
