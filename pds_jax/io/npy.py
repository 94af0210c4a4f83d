"""Reading .npy and .npz files that may be damaged or hostile: sizes are checked, nothing is unpickled."""

from __future__ import annotations

import math
import os
import pathlib
import tokenize
import warnings
import zipfile
import zlib
from typing import IO

import numpy as np

from pds_jax.types import PdsError

_MAX_BYTES = 4 << 30
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
            return _read_array(file, pathlib.Path(path).stat().st_size, str(path))
    except OSError as error:
        raise PdsError(f"cannot read {path}: {error.strerror or error}") from error


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read every array of one .npz file.

    Args:
      path: the file.

    Returns:
      name -> array.

    Raises:
      PdsError: missing, empty, truncated or damaged file (every member carries a checksum), or pickled objects.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as file:
                    where = f"{path} ({member.filename})"
                    arrays[member.filename.removesuffix(".npy")] = _read_array(file, member.file_size, where)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise PdsError(f"{path} is not a whole .npz file ({error}); make or copy it again") from error
    except OSError as error:
        raise PdsError(f"cannot read {path}: {error.strerror or error}") from error
    return arrays


def _read_array(file: IO[bytes], size: int, where: str) -> np.ndarray:
    """Read one array of a known size in bytes, header included."""
    if size == 0:
        raise PdsError(f"{where} is empty; make or copy it again")
    if size > _MAX_BYTES:
        raise PdsError(f"{where} holds {size} bytes, more than the {_MAX_BYTES} that are read")
    try:
        shape, fortran, dtype = _read_header(file)
    except _HEADER_ERRORS as error:
        raise PdsError(f"{where} is not a .npy array ({error}); make or copy it again") from error
    if dtype.hasobject:
        raise PdsError(f"{where} holds pickled Python objects, which are never loaded; save a plain float array")
    data = file.read()
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected or min(shape, default=1) < 0:
        raise PdsError(
            f"{where} is truncated or damaged: {len(data)} bytes of data, its header says {expected}"
        )
    array = np.frombuffer(data, dtype=dtype)
    return array.reshape(shape, order="F" if fortran else "C").copy()


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and dtype from the start of an array."""
    version = np.lib.format.read_magic(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers written by Python 2, which read well
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(file)
        return np.lib.format.read_array_header_2_0(file)
