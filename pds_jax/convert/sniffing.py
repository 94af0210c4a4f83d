"""What kind of checkpoint a path holds, from its content and never from its name."""

from __future__ import annotations

import contextlib
import gzip
import os
import pathlib
import struct

from pds_jax.convert import adm, diffusers, orbax_io, safetensors_io
from pds_jax.convert.persistent import is_persistent
from pds_jax.convert.torch_files import GZIP_MAGIC, ZIP_MAGIC
from pds_jax.convert.tree import ConversionError

KINDS = ("score_sde_flax", "score_sde_torch", "diffusers", "safetensors", "orbax", "edm", "guided_diffusion")
_LOOKED_FOR = (
    "score_sde's checkpoint_N (msgpack), score_sde_pytorch's .pth (zip or pickle, also gzipped), EDM's "
    "network-snapshot .pkl, guided-diffusion's .pt, a diffusers folder (config.json of a UNet2DModel, here or in "
    "unet/), a folder of Flax's by orbax, or our model.safetensors (with config.json)"
)
_HEAD = 1 << 16
_OTHER_FILES = {
    b"version https://git-lfs": "a pointer of Git LFS, not the weights: fetch them with git lfs pull",
    b"<!doctype html": "a web page, not the weights: the download was answered by a page, get the file again",
    b"<html": "a web page, not the weights: the download was answered by a page, get the file again",
    b"\x89png": "a picture",
    b"\x93numpy": "an array of NumPy, not a checkpoint",
    b"{": "text in JSON, not weights",
}


def sniff(path: str | os.PathLike[str]) -> str:
    """Kind of a checkpoint.

    Args:
      path: a file or a folder.

    Returns:
      One of ``KINDS``.

    Raises:
      ConversionError: there is nothing, or nothing known; the message lists what was looked for.
    """
    place = pathlib.Path(path)
    if not place.exists():
        raise ConversionError(f"{path} does not exist; a checkpoint is one of: {_LOOKED_FOR}")
    if place.is_dir():
        kind = _sniff_folder(place)
    else:
        kind = _sniff_file(place)
    if kind is None:
        raise ConversionError(f"{path} is no checkpoint that is known here: {_found(place)}; looked for {_LOOKED_FOR}")
    return kind


def _sniff_folder(folder: pathlib.Path) -> str | None:
    if diffusers.unet_folder(folder) is not None:
        return "diffusers"
    if (folder / safetensors_io.MODEL).is_file():
        return "safetensors"
    return "orbax" if orbax_io.trees(folder) else None


def _found(place: pathlib.Path) -> str:
    """What lies there instead of a checkpoint, in a few words."""
    if place.is_dir():
        names = sorted(path.name + "/" * path.is_dir() for path in place.iterdir())
        inside = [name for name in names if not name.endswith("/") and _is_weights(place / name)]
        if inside:
            return f"the folder holds {', '.join(inside[:8])}; give one of them"
        return f"the folder holds {', '.join(names[:8])}" if names else "the folder is empty"
    head = _head(place)
    for start, what in _OTHER_FILES.items():
        if head.lstrip().lower().startswith(start):
            return f"the file is {what}"
    return f"the file begins with {head[:8]!r}" if head else "the file is empty"


def _is_weights(path: pathlib.Path) -> bool:
    with contextlib.suppress(ConversionError, OSError):
        return _sniff_file(path) is not None
    return False


def _sniff_file(path: pathlib.Path) -> str | None:
    if path.name.endswith(".json") and diffusers.unet_folder(path) is not None:
        return "diffusers"  # an index of shards, beside config.json
    head = _head(path)
    if head.startswith(ZIP_MAGIC) or (head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")):
        if diffusers.unet_folder(path) is not None:
            return "diffusers"
        return _pickled(head, head.startswith(ZIP_MAGIC), path)
    if len(head) > 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < path.stat().st_size:
        return "diffusers" if diffusers.unet_folder(path) is not None else "safetensors"
    if head.startswith(b"\x89PNG"):
        return None
    if head and (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)):
        return "score_sde_flax"
    return None


def _pickled(head: bytes, archive: bool, path: pathlib.Path) -> str:
    """Which program pickled a file, by the names near its beginning; torch.save puts its pickle first."""
    if is_persistent(head):
        if archive:
            raise ConversionError(
                f"{path} is a training state of EDM, which holds its program's objects; give network-snapshot-*.pkl"
            )
        return "edm"
    return "guided_diffusion" if adm.is_state_dict(head) else "score_sde_torch"


def _head(path: pathlib.Path) -> bytes:
    """The first bytes, after undoing gzip."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
        if head.startswith(GZIP_MAGIC):
            with gzip.open(path) as packed:
                return packed.read(_HEAD)
    except Exception as error:  # OSError, EOFError, zlib.error
        raise ConversionError(f"cannot read {path}: {error}") from error
    return head
