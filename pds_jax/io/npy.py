"""Reading .npy and .npz files that may be damaged or hostile: sizes are checked, nothing is unpickled.

``read_npy`` and ``read_npz`` load small files whole; ``map_npy`` and ``map_npz`` leave large arrays on disk.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import pathlib
import shutil
import tempfile
import tokenize
import warnings
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np

from pds_jax.types import PdsError

_MAX_BYTES = 4 << 30
_IN_MEMORY = 256 << 20  # a compressed array up to this size is unpacked into memory, a larger one into a file
_PIECE = 4 << 20
_SPARE = 1 << 30  # bytes that unpacking leaves free on the disk
# What NumPy's header parser was seen to raise on damaged headers.
_HEADER_ERRORS = (ValueError, SyntaxError, TypeError, KeyError, tokenize.TokenError, MemoryError, RecursionError)


def read_npy(path: str | os.PathLike[str]) -> np.ndarray:
    """Read one .npy file.

    Args:
      path: the file.

    Returns:
      The array as stored.

    Raises:
      PdsError: missing, empty, truncated or over-long file, not a .npy file, or pickled objects.
    """
    try:
        with open(path, "rb") as file:
            return read_bytes(file, pathlib.Path(path).stat().st_size, str(path))
    except OSError as error:
        raise PdsError(f"cannot read {path}: {error.strerror or error}") from error


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read every array of one .npz file; compressed ones of up to 4 GiB.

    Args:
      path: the file.

    Returns:
      name -> array.

    Raises:
      PdsError: missing, empty, truncated or damaged file (every member carries a checksum), or pickled objects.
    """
    arrays = {}
    with _zip_errors(path), zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                where = f"{path} ({member.filename})"
                most = member.file_size if member.compress_type == zipfile.ZIP_STORED else _MAX_BYTES
                arrays[member.filename.removesuffix(".npy")] = read_bytes(file, member.file_size, where, most)
    return arrays


def read_bytes(file: IO[bytes], size: int, where: str, most: int | None = None) -> np.ndarray:
    """Read one array of a known size in bytes, header included; ``where`` is its name for messages.

    Raises:
      PdsError: as :func:`read_npy`, or more than ``most`` bytes, by default 4 GiB.
    """
    most = _MAX_BYTES if most is None else most
    if size > most:
        raise PdsError(f"{where} holds {size} bytes, more than the {most} that are read")
    shape, fortran, dtype = _checked_header(file, size, where)
    data = file.read()
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected or min(shape, default=1) < 0:
        raise PdsError(f"{where} is truncated or damaged: {len(data)} bytes of data, its header says {expected}")
    array = np.frombuffer(data, dtype=dtype)
    return array.reshape(shape, order="F" if fortran else "C").copy()


def _checked_header(file: IO[bytes], size: int, where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and dtype from the start of an array of a known size in bytes; no pickled objects."""
    shape, fortran, dtype = _some_header(file, size, where)
    if dtype.hasobject:
        raise PdsError(f"{where} holds pickled Python objects, which are never loaded; save a plain float array")
    return shape, fortran, dtype


def _some_header(file: IO[bytes], size: int, where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """The same of any array, also of objects."""
    if size == 0:
        raise PdsError(f"{where} is empty; make or copy it again")
    try:
        return _read_header(file)
    except _HEADER_ERRORS as error:
        raise PdsError(f"{where} is not a .npy array ({error}); make or copy it again") from error


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and dtype from the start of an array."""
    version = np.lib.format.read_magic(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers written by Python 2, which read well
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(file)
        return np.lib.format.read_array_header_2_0(file)


class Rows:
    """An array in a file, read row by row when it is indexed along its first axis; memory holds what was asked for.

    Attributes:
      shape: of the array.
      dtype: of the array.
    """

    def __init__(self, file: IO[bytes], offset: int, shape: tuple[int, ...], dtype: np.dtype, where: str):
        """``file`` is open and stays so in a copy; the array is in C order and begins at byte ``offset``."""
        self.shape, self.dtype, self._offset, self._where = shape, dtype, offset, where
        self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int]) -> np.ndarray:
        """Rows as an array in memory.

        Raises:
          PdsError: the file was cut short since it was opened.
        """
        if isinstance(index, int):
            return self[[index]][0]
        rows = range(*index.indices(len(self))) if isinstance(index, slice) else [int(row) for row in index]
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        raw: Any = found.reshape(-1).view(np.uint8)
        into, size = memoryview(raw), math.prod(self.shape[1:]) * self.dtype.itemsize
        first = 0
        while first < len(rows):
            last = first + 1  # rows that follow each other are read at once
            while last < len(rows) and rows[last] == rows[last - 1] + 1:
                last += 1
            self._read(into[first * size : last * size], self._offset + rows[first] * size)
            first = last
        return found

    def _read(self, into: memoryview, place: int) -> None:
        while into:
            data = os.pread(self._descriptor, min(len(into), _PIECE), place)
            if not data:
                raise PdsError(f"{self._where} was cut short while it was being read; copy it again")
            into[: len(data)] = data
            into, place = into[len(data) :], place + len(data)


def map_npy(path: str | os.PathLike[str]) -> np.ndarray | Rows:
    """Open one .npy file of any size; its rows are read when they are used.

    Raises:
      PdsError: missing, empty, truncated or over-long file, not a .npy file, or pickled objects.
    """
    try:
        with open(path, "rb") as file:
            return _map_array(file, 0, pathlib.Path(path).stat().st_size, str(path))
    except OSError as error:
        raise PdsError(f"cannot read {path}: {error.strerror or error}") from error


# Shape of an array, and what loads it.
Member = tuple[tuple[int, ...], Callable[[], np.ndarray | Rows]]


def map_npz(path: str | os.PathLike[str]) -> Mapping[str, Member]:
    """The arrays of one .npz file of any size: name -> (shape, function that loads it).

    An array stored without compression is read from the file row by row, after one pass over its checksum; a compressed
    one is unpacked into memory, above 256 MiB into a temporary file ($TMPDIR) that goes away with the program.

    Raises:
      PdsError: missing, empty, truncated or damaged file; when an array is loaded, also pickled objects, or no room
        for unpacking.
    """
    found: dict[str, Member] = {}
    with _zip_errors(path), zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            where = f"{path} ({member.filename})"
            with archive.open(member) as file:
                shape, _, _ = _some_header(file, member.file_size, where)
            load = functools.partial(_load_member, path, member, where)
            found[member.filename.removesuffix(".npy")] = shape, load
    return found


def _load_member(path: str | os.PathLike[str], member: zipfile.ZipInfo, where: str) -> np.ndarray | Rows:
    with _zip_errors(path), zipfile.ZipFile(path) as archive:
        if member.compress_type == zipfile.ZIP_STORED:
            with archive.open(member) as file:
                while file.read(_PIECE):
                    pass  # zipfile compares the checksum at the end
            with open(path, "rb") as raw:
                raw.seek(member.header_offset + 26)
                name, extra = (int.from_bytes(raw.read(2), "little") for _ in range(2))
                return _map_array(raw, member.header_offset + 30 + name + extra, member.file_size, where)
        with archive.open(member) as file:
            if member.file_size <= _IN_MEMORY:
                return read_bytes(file, member.file_size, where)
            with spill(file, where) as unpacked:
                return _map_array(unpacked, 0, member.file_size, where)


def spill(stream: IO[bytes], where: str) -> IO[bytes]:
    """Unpack a stream into a temporary file without a name; returns it, open for reading.

    Raises:
      PdsError: the disk would be full.
    """
    folder = tempfile.gettempdir()
    file = tempfile.TemporaryFile(dir=folder)
    try:
        for number, piece in enumerate(iter(lambda: stream.read(_PIECE), b"")):
            if number % 16 == 0 and shutil.disk_usage(folder).free < _SPARE:
                raise PdsError(f"{where}: {folder} has no room to unpack it; set TMPDIR to a larger disk, or unpack it")
            file.write(piece)
        file.flush()
        file.seek(0)
    except OSError as error:
        file.close()
        raise PdsError(f"{where} cannot be unpacked into {folder}: {error.strerror or error}; set TMPDIR") from error
    except BaseException:
        file.close()
        raise
    return file


def _map_array(file: IO[bytes], start: int, size: int, where: str) -> np.ndarray | Rows:
    """The array that begins at a byte of a real file and is ``size`` bytes long, header included."""
    file.seek(start)
    shape, fortran, dtype = _checked_header(file, size, where)
    offset = file.tell()
    expected = math.prod(shape) * dtype.itemsize
    if start + size - offset != expected or min(shape, default=1) < 0:
        raise PdsError(
            f"{where} is truncated or damaged: {start + size - offset} bytes of data, its header says {expected}"
        )
    if not expected:
        return np.empty(shape, dtype)
    if fortran and len(shape) > 1:  # its rows lie scattered
        mapped: Any = np.memmap(file, dtype, "r", offset, shape, "F")
        return mapped
    return Rows(file, offset, shape, dtype, where)


@contextlib.contextmanager
def _zip_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what a damaged archive raises into PdsError."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise PdsError(f"{path} is not a whole .npz file ({error}); make or copy it again") from error
    except OSError as error:
        raise PdsError(f"cannot read {path}: {error.strerror or error}") from error
