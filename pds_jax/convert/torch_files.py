"""Containers of ``torch.save``, read without PyTorch and without running anything in them.

Three forms: a zip archive (``data.pkl`` and one stored entry a storage), the older sequence of pickles followed by raw
storages, and either of them compressed by gzip. Storages are read when a tensor is asked for.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import os
import pathlib
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np

from pds_jax.convert.pickles import (
    ANY_CLASS,
    STORAGE_DTYPES,
    Constant,
    Function,
    Machine,
    OtherObject,
    Storage,
    Tensor,
)
from pds_jax.convert.tree import ConversionError, Leaf

GZIP_MAGIC = b"\x1f\x8b"
ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_PICKLE = 64 << 20
MAX_GZIP_RATIO = 32
MAX_UNPACKED = 8 << 30
_ITEMSIZE = {
    **{"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2, "complex64": 8, "complex128": 16},
    **{"int64": 8, "int32": 4, "int16": 2},
}

ReadStorage = Callable[[Storage], bytes]


@contextlib.contextmanager
def open_plain(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file for reading; gzip is undone, within limits.

    Args:
      path: the file.

    Yields:
      A seekable binary file.

    Raises:
      ConversionError: the file cannot be read, is damaged, or grows more than 32-fold.
    """
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == GZIP_MAGIC
            file.seek(0)
            plain: IO[bytes] = io.BytesIO(_unpack(file)) if packed else file
            yield plain
    except OSError as error:
        raise ConversionError(f"cannot read {path}: {error}") from error


def _unpack(file: IO[bytes]) -> bytes:
    limit = min(MAX_GZIP_RATIO * os.fstat(file.fileno()).st_size + (1 << 20), MAX_UNPACKED)
    try:
        with gzip.GzipFile(fileobj=file) as packed:
            data = packed.read(limit + 1)
    except Exception as error:  # OSError, EOFError or zlib.error
        raise ConversionError(f"the gzip data are damaged: {error}") from error
    if len(data) > limit:
        raise ConversionError(f"the file unpacks to more than {limit} bytes; that is no checkpoint")
    return data


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[Any, Callable[[Tensor], Leaf]]]:
    """Read the object that ``torch.save`` wrote.

    Args:
      path: the file.

    Yields:
      The object, made of dicts, lists, numbers and :class:`Tensor`, and a function that turns a tensor into a leaf;
      leaves can be read until the context ends.

    Raises:
      ConversionError: not such a file, damaged, or asking for code.
    """
    name = pathlib.Path(path).name
    with open_plain(path) as file:
        try:
            is_zip = file.read(4) == ZIP_MAGIC
            file.seek(0)
            value, read = _load_zip(file) if is_zip else load_legacy(file)
        except ConversionError as error:
            raise ConversionError(f"{name}: {error}") from error
        except Exception as error:  # whatever malformed bytes make the parsers raise
            raise ConversionError(f"{name} is damaged or not written by torch.save: {error}") from error
        yield value, functools.partial(leaf_of, read=read, name=name)


def leaf_of(tensor: Tensor, read: ReadStorage, name: str) -> Leaf:
    """A tensor as a leaf; ``read`` gives the bytes of its storage, ``name`` is the file's, for messages."""
    return Leaf(tensor.shape, tensor.storage.dtype, functools.partial(_read_tensor, tensor, read, name))


def _read_tensor(tensor: Tensor, read: ReadStorage, name: str) -> np.ndarray:
    """The strided view as an array; bfloat16 becomes float32."""
    storage = tensor.storage
    try:
        data = read(storage)
    except Exception as error:  # zipfile, zlib and the file system
        raise ConversionError(f"{name}: cannot read storage {storage.key!r}: {error}") from error
    if storage.dtype == "bfloat16":
        numbers = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        numbers = np.frombuffer(data, np.dtype(storage.dtype).newbyteorder("<"))
    if numbers.size != storage.numel:
        raise ConversionError(f"{name}: storage {storage.key!r} holds {numbers.size} numbers, not {storage.numel}")
    strides = [numbers.itemsize * step for step in tensor.strides]
    view = np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides, writeable=False)
    return np.array(view)


def _storage(fields: Any) -> Storage:
    """The storage that a persistent id names: ('storage', type, key, device, count[, view])."""
    if not isinstance(fields, tuple) or len(fields) not in (5, 6) or fields[0] != "storage":
        raise ConversionError("the pickle refers to something other than a storage")
    kind, key, _, numel = fields[1:5]
    if not isinstance(kind, Constant) or kind.name not in STORAGE_DTYPES:
        raise ConversionError("a storage is of an unknown type")
    if not isinstance(key, str) or type(numel) is not int or not 0 <= numel < 2**48:
        raise ConversionError("a storage is malformed")
    if len(fields) == 6 and fields[5] is not None:
        raise ConversionError("views of storages (PyTorch before 0.4) are not supported; save the file again")
    return Storage(key, STORAGE_DTYPES[kind.name], numel)


def _bytes_of(storage: Storage) -> int:
    return storage.numel * _ITEMSIZE.get(storage.dtype, 1)


class _Storages(dict[str, Storage]):
    """Storages by key, filled while the pickle is read."""

    def remember(self, fields: Any) -> Any:
        if isinstance(fields, tuple) and fields[:1] == ("module",):  # a class with its program text
            return fields[1] if len(fields) > 1 else None
        kind = fields[1] if isinstance(fields, tuple) and len(fields) > 1 else None
        if isinstance(kind, Function):  # of numbers that no weights are in, quantised ones for example
            return OtherObject("storage", {})
        storage = _storage(fields)
        if self.setdefault(storage.key, storage) != storage:
            raise ConversionError(f"storage {storage.key!r} is described in two ways")
        return storage


def _load_zip(file: IO[bytes]) -> tuple[Any, ReadStorage]:
    archive = zipfile.ZipFile(file)
    root = _check_archive(archive, file.seek(0, io.SEEK_END))
    storages = _Storages()
    value = Machine(storages.remember, ANY_CLASS).run(archive.read(f"{root}/data.pkl"))
    sizes = {info.filename: info.file_size for info in archive.infolist()}
    for storage in storages.values():
        size = sizes.get(f"{root}/data/{storage.key}")
        if size != _bytes_of(storage):
            raise ConversionError(f"storage {storage.key!r} has {size} bytes, not {_bytes_of(storage)}")

    def read(storage: Storage) -> bytes:
        return archive.read(f"{root}/data/{storage.key}")

    return value, read


def _check_archive(archive: zipfile.ZipFile, size: int) -> str:
    """Refuse what ``torch.save`` never writes, compare every checksum; return the name of the root folder."""
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        raise ConversionError("the archive has an entry twice")
    if any(name.startswith("/") or "\\" in name or ".." in name.split("/") for name in names):
        raise ConversionError("an entry of the archive points outside of it")
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
        raise ConversionError("the archive is compressed or encrypted; torch.save writes neither")
    if sum(entry.file_size for entry in entries) > size:
        raise ConversionError("the entries of the archive are larger than the archive")
    roots = [name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl")]
    if len(roots) != 1 or "/" in roots[0]:
        raise ConversionError(f"the archive has {len(roots)} data.pkl; a checkpoint has one, in its only folder")
    if archive.getinfo(f"{roots[0]}/data.pkl").file_size > MAX_PICKLE:
        raise ConversionError(f"data.pkl is larger than {MAX_PICKLE} bytes; no checkpoint of a network is")
    broken = archive.testzip()
    if broken is not None:
        raise ConversionError(f"the checksum of entry {broken!r} is wrong")
    if f"{roots[0]}/byteorder" in names and archive.read(f"{roots[0]}/byteorder") != b"little":
        raise ConversionError("the file was written on a big-endian machine")
    return roots[0]


def load_legacy(file: IO[bytes]) -> tuple[Any, ReadStorage]:
    """Read the older form, pickles followed by storages: the object, and a function that reads a storage's bytes."""
    if Machine(_no_storage).run(file) != LEGACY_MAGIC:
        raise ConversionError("a pickle, but not one that torch.save wrote")
    if Machine(_no_storage).run(file) != LEGACY_PROTOCOL:
        raise ConversionError("written by an unknown version of torch.save")
    system = Machine(_no_storage).run(file)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ConversionError("the file was written on a big-endian machine")
    storages = _Storages()
    value = Machine(storages.remember, ANY_CLASS).run(file)
    starts = _find_storages(file, Machine(_no_storage).run(file), storages)

    def read(storage: Storage) -> bytes:
        file.seek(starts[storage.key])
        return file.read(_bytes_of(storage))

    return value, read


def _no_storage(_: Any) -> Any:
    raise ConversionError("a storage where none belongs")


def _find_storages(file: IO[bytes], keys: Any, storages: dict[str, Storage]) -> dict[str, int]:
    """Where each storage's numbers start: for every key its count (int64), then the numbers."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ConversionError("the list of storages is malformed")
    if sorted(keys) != sorted(storages):
        raise ConversionError("the list of storages does not agree with the tensors")
    starts, position = {}, file.tell()
    size = file.seek(0, io.SEEK_END)
    for key in keys:
        file.seek(position)
        numel = struct.unpack("<q", file.read(8))[0]
        end = position + 8 + _bytes_of(storages[key])
        if numel != storages[key].numel or end > size:
            raise ConversionError(f"storage {key!r} is cut short")
        starts[key], position = position + 8, end
    if position != size:
        raise ConversionError(f"{size - position} bytes follow the last storage")
    return starts
