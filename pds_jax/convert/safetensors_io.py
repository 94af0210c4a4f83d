"""Models in safetensors: one file of arrays named ``a/b/c`` and the configuration in ``config.json`` beside it."""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_collections
import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy, which safetensors asks it for)
import numpy as np

from pds_jax.convert.tree import ConversionError, Leaf, check_params
from pds_jax.io import files
from pds_jax.statistics import Statistics

MODEL = "model.safetensors"
CONFIG = "config.json"
STATISTICS = "statistics.npz"
_CHECKSUM = "sha256"
_NUMBERS = {"inf": float("inf"), "-inf": float("-inf"), "nan": float("nan")}
_DTYPES = {"F32": "float32", "F64": "float64", "F16": "float16", "BF16": "bfloat16"}


def leaves(path: str | os.PathLike[str]) -> dict[str, Leaf]:
    """Leaves of a safetensors file, not read yet.

    Args:
      path: the file.

    Returns:
      ``{name: leaf}``.

    Raises:
      ConversionError: the file is missing or damaged; in a file that was written here one changed bit is noticed.
    """
    from safetensors import safe_open

    try:
        file = safe_open(path, framework="numpy")  # open for as long as a leaf is held: a thousand openings take long
        expected = (file.metadata() or {}).get(_CHECKSUM)
        if expected is not None and expected != _checksum(sorted(file.keys()), file.get_tensor):
            raise ConversionError(
                "its checksum is wrong: it is damaged, or another program changed its numbers and kept its header"
            )
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, not a dict
        return {
            name: Leaf(
                tuple(part.get_shape()),
                _DTYPES.get(part.get_dtype(), part.get_dtype()),
                functools.partial(_read, file, path, name),
            )
            for name, part in slices.items()
        }
    except Exception as error:  # SafetensorError and OSError, which share no narrower base
        raise ConversionError(f"{path} is not a readable safetensors file: {error}") from error


def _read(file: Any, path: str | os.PathLike[str], name: str) -> np.ndarray:
    try:
        return file.get_tensor(name)
    except Exception as error:  # SafetensorError and OSError, which share no narrower base
        raise ConversionError(f"{path}: cannot read {name!r}: {error}") from error


def _checksum(names: Iterable[str], read: Callable[[str], np.ndarray]) -> str:
    """SHA-256 of names, shapes, dtypes and numbers."""
    digest = hashlib.sha256()
    for name in names:
        value = read(name)
        digest.update(f"{name} {value.shape} {value.dtype.name} ".encode())
        digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write named arrays and their checksum, atomically.

    Args:
      path: the file.
      arrays: ``{name: array}``.
      metadata: strings for the header.

    Raises:
      PdsError: the place cannot be written.
    """
    from safetensors.numpy import save

    arrays = {name: np.array(array, order="C") for name, array in arrays.items()}
    data = save(arrays, {**metadata, _CHECKSUM: _checksum(sorted(arrays), arrays.__getitem__)})
    files.atomic_write(path, lambda file: file.write(data))


def config_of(path: str | os.PathLike[str]) -> ml_collections.ConfigDict:
    """The configuration that one of our own models carries.

    Args:
      path: the model's folder, or the weights file in it.

    Returns:
      The configuration.

    Raises:
      ConversionError: there is no configuration, or it is not one of pds_jax.
    """
    folder = pathlib.Path(path)
    file = (folder if folder.is_dir() else folder.parent) / CONFIG
    if not file.is_file():
        raise ConversionError(f"{path} carries no configuration ({CONFIG}); give the one it was trained with")
    fields = files.read_json(file)
    if not isinstance(fields, dict) or not isinstance(fields.get("model"), dict):
        raise ConversionError(f"{file} is not a configuration of pds_jax; give the one the network was trained with")
    return ml_collections.ConfigDict(_with_numbers(fields))


def _with_numbers(value: Any) -> Any:
    """Turn "inf", "-inf" and "nan" back into numbers: strict JSON has no such numbers, so they are stored as text."""
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    return _NUMBERS.get(value, value) if isinstance(value, str) else value


def export(
    params: Mapping[str, Any], config: Any, path: str | os.PathLike[str], statistics: Statistics | None = None
) -> None:
    """Write a folder with ``model.safetensors``, ``statistics.npz`` where they are given, and ``config.json``.

    What a model before left there is removed first, and the configuration comes last: if writing is interrupted, the
    folder has none, and reading it is an error.

    Args:
      params: the parameter tree.
      config: the configuration it belongs to.
      path: the folder.
      statistics: of the data.

    Raises:
      PdsError: parameters and configuration do not agree, or the folder cannot be written.
    """
    folder = pathlib.Path(path)
    arrays = check_params(params, config)
    files.check_writable(folder / MODEL)
    for name in (CONFIG, STATISTICS):
        (folder / name).unlink(missing_ok=True)
    write_arrays(folder / MODEL, arrays, {"format": "pds_jax"})
    if statistics is not None:
        statistics.save(folder / STATISTICS)
    files.write_json(folder / CONFIG, config.to_dict())
