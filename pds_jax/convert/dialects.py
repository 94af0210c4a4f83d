"""Files of arrays without a configuration, whose names say which program's they are: .pth and .safetensors."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from pds_jax.convert import diffusers, safetensors_io, score_sde, score_sde_torch
from pds_jax.convert.names import diffusers_pairs
from pds_jax.convert.pickles import Tensor
from pds_jax.convert.torch_files import opened
from pds_jax.convert.tree import ConversionError, Leaf, Report, Shape
from pds_jax.convert.weight_sets import AS_SAVED, NoWeights


def load_torch(
    path: str | os.PathLike[str], config: Any, shapes: Mapping[str, Shape], use_ema: bool
) -> tuple[dict[str, Any], Report]:
    """Parameters from a file of ``torch.save``, possibly compressed by gzip.

    Raises ConversionError if it is damaged, asks for code, or is of another network.
    """
    report = Report("score_sde_torch", str(path), "ema" if use_ema else "raw")
    with opened(path) as (state, leaf):
        return _first_that_fits(
            [
                lambda: score_sde_torch.from_arrays(state, Tensor, leaf, config, shapes, report, use_ema),
                lambda: _of_diffusers(state, Tensor, leaf, config, shapes, report, use_ema, alone=False),
            ]
        ), report


def load_safetensors(
    path: str | os.PathLike[str], config: Any, shapes: Mapping[str, Shape], use_ema: bool
) -> tuple[dict[str, Any], Report]:
    """Parameters from one of our own models, or from a safetensors file with the names of another program.

    Raises ConversionError if it is damaged or belongs to another network.
    """
    file = pathlib.Path(path)
    file = file / safetensors_io.MODEL if file.is_dir() else file
    report = Report("safetensors", str(path), AS_SAVED)
    leaves = safetensors_io.leaves(file)
    return _first_that_fits(
        [
            lambda: score_sde.from_tree(leaves, shapes, report, use_ema, alone=True),
            lambda: score_sde_torch.from_arrays(leaves, Leaf, _itself, config, shapes, report, use_ema, alone=True),
            lambda: _of_diffusers(leaves, Leaf, _itself, config, shapes, report, use_ema, alone=True),
            lambda: score_sde.from_tree(_slashed(leaves), shapes, report, use_ema, alone=True),
        ]
    ), report


def _slashed(leaves: Mapping[str, Leaf]) -> dict[str, Leaf]:
    """Names of flax joined by dots."""
    return {name.replace(".", "/"): leaf for name, leaf in leaves.items()}


def _first_that_fits(readers: list[Callable[[], dict[str, Any]]]) -> dict[str, Any]:
    first: ConversionError | None = None
    for read in readers:
        try:
            return read()
        except NoWeights as error:
            first = first or error
    assert first is not None
    raise first


def _of_diffusers(
    value: Any,
    kind: type,
    leaf: Callable[[Any], Leaf],
    config: Any,
    shapes: Mapping[str, Shape],
    report: Report,
    use_ema: bool,
    alone: bool,
) -> dict[str, Any]:
    try:
        diffusers_pairs(config, shapes)
    except (ConversionError, KeyError) as error:
        raise NoWeights(str(error)) from error
    found = diffusers.from_arrays(value, kind, leaf, config, shapes, report, use_ema, alone=alone)
    report.notes.append("no config.json of the UNet2DModel lies beside it; its options are taken to be the config's")
    return found


def _itself(leaf: Leaf) -> Leaf:
    return leaf
