"""Weights of one component of a diffusers or transformers folder: whole, in shards with an index, or a variant."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator, Sequence

from pds_jax.convert import safetensors_io
from pds_jax.convert.pickles import Tensor
from pds_jax.convert.torch_files import opened
from pds_jax.convert.tree import ConversionError, Leaf
from pds_jax.io import files

DIFFUSERS_STEM = "diffusion_pytorch_model"
TRANSFORMERS_STEMS = ("model", "pytorch_model")
# In the order of preference; float32 first. "non_ema" is read only if it is asked for.
VARIANTS = ("", "bf16", "fp16")


def find_weights(folder: str | os.PathLike[str], stems: Sequence[str], variant: str | None = None) -> pathlib.Path:
    """The file of a component's weights, or the index of its shards.

    Args:
      folder: the component's folder.
      stems: names without variant and suffix, e.g. ``diffusion_pytorch_model``.
      variant: the one to read ("" for none); by default the first of ``VARIANTS`` that is there.

    Raises:
      ConversionError: none is there; the message lists what is.
    """
    folder = pathlib.Path(folder)
    for name in VARIANTS if variant is None else (variant,):
        for suffix in ("safetensors", "bin"):
            for stem in stems:
                dotted = f".{name}" if name else ""
                for file in (f"{stem}{dotted}.{suffix}", f"{stem}.{suffix}.index{dotted}.json"):
                    if (folder / file).is_file():
                        return folder / file
    there = ", ".join(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else "no such folder"
    wanted = f"variant {variant!r} of " if variant else ""
    names = " or ".join(f"{stem}.safetensors" for stem in stems)
    raise ConversionError(f"{folder} holds no {wanted}{names}; it has: {there}")


@contextlib.contextmanager
def opened_weights(path: str | os.PathLike[str]) -> Iterator[dict[str, Leaf]]:
    """Every leaf that :func:`find_weights` leads to, ``{name: leaf}``; .bin leaves can be read until the context ends.

    Raises:
      ConversionError: a file is damaged or missing, or index and shards do not agree.
    """
    path = pathlib.Path(path)
    with contextlib.ExitStack() as stack:
        if path.suffix != ".json":
            yield _leaves(path, stack)
            return
        where = _weight_map(path)
        found: dict[str, Leaf] = {}
        for shard in sorted(set(where.values())):
            if not (path.parent / shard).is_file():
                raise ConversionError(f"{path} names the shard {shard!r}, which is not there; get the whole folder")
            found.update(_leaves(path.parent / shard, stack))
        if found.keys() != where.keys():
            name = min(found.keys() ^ where.keys())
            there = "its shards lack" if name in where else "its shards hold beyond it"
            raise ConversionError(f"{path} is not the index of these shards: {there} {name!r}; get the folder again")
        yield found


def _weight_map(path: pathlib.Path) -> dict[str, str]:
    fields = files.read_json(path)
    where = fields.get("weight_map") if isinstance(fields, dict) else None
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise ConversionError(f"{path} is no index of shards: it lacks 'weight_map'")
    for shard in set(where.values()):
        if pathlib.PurePath(shard).name != shard or "\\" in shard:
            raise ConversionError(f"{path} names the shard {shard!r}, which is not a plain file name")
    return where


def _leaves(path: pathlib.Path, stack: contextlib.ExitStack) -> dict[str, Leaf]:
    if path.suffix == ".safetensors":
        return safetensors_io.leaves(path)
    state, leaf = stack.enter_context(opened(path))
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConversionError(f"{path}: not a dictionary of tensors")
    return {str(name): leaf(value) for name, value in state.items()}
