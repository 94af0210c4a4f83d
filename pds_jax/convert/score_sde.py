"""Checkpoints of score_sde (JAX): a msgpack of the whole training state, written by ``flax.training.checkpoints``.

The file is decoded here rather than by flax, so that every array is checked before it is made: its bytes must be as
many as its shape needs, its dtype a plain one, no name may occur twice.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import msgpack
import numpy as np

from pds_jax.convert.torch_files import open_plain
from pds_jax.convert.tree import ConversionError, Leaf, Pair, Report, Shape, assemble, flatten
from pds_jax.convert.weight_sets import Expected, choose

_NDARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"
_DTYPES: dict[str, np.dtype] = {
    name: np.dtype(name)
    for name in ("float64 float32 float16 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool").split()
}
_DTYPES["bfloat16"] = np.dtype(ml_dtypes.bfloat16)
# Lists are shapes, or short records beside the weights; msgpack makes room for as many items as a header promises.
_LIMITS = {"max_array_len": 1 << 14, "max_map_len": 1 << 16, "max_str_len": 1 << 20}


def decode(data: Any) -> Any:
    """Nested dicts of :class:`Leaf`, numbers and strings from flax's msgpack.

    Args:
      data: bytes, or anything with a buffer.

    Returns:
      The decoded object.

    Raises:
      ConversionError: malformed data.
    """
    try:
        return msgpack.unpackb(
            data, ext_hook=_extension, object_pairs_hook=_dictionary, raw=False, strict_map_key=False, **_LIMITS
        )
    except ConversionError:
        raise
    except Exception as error:  # msgpack raises ValueError, its subclasses, TypeError and bare exceptions
        raise ConversionError(f"damaged, or not a msgpack of flax: {error}") from error


def _dictionary(pairs: list[tuple[Any, Any]]) -> dict[str, Any] | Leaf:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if not isinstance(key, str | int):
            raise ConversionError("a name in the file is neither a string nor a number")
        key = str(key)
        if key in result:
            raise ConversionError(f"the name {key!r} occurs twice")
        result[key] = value
    return _join_chunks(result) if _CHUNKED in result else result


def _extension(code: int, data: bytes) -> Any:
    if code == _COMPLEX:
        return None  # a complex number: flax can write one, score_sde never does
    if code not in (_NDARRAY, _SCALAR):
        raise ConversionError(f"unknown msgpack extension {code}")
    shape, name, buffer = msgpack.unpackb(data, raw=False, **_LIMITS)
    if name not in _DTYPES or not isinstance(buffer, bytes):
        raise ConversionError("an array is of an unknown dtype")
    _check_shape(shape)
    if math.prod(shape) * _DTYPES[name].itemsize != len(buffer):
        raise ConversionError(f"an array of shape {tuple(shape)} and {name} has {len(buffer)} bytes")
    return Leaf(tuple(shape), name, functools.partial(_array, buffer, name, tuple(shape)))


def _check_shape(shape: Any) -> None:
    if not isinstance(shape, list) or len(shape) > 16 or not all(type(n) is int and 0 <= n < 2**48 for n in shape):
        raise ConversionError("an array's shape is malformed")


def _array(buffer: bytes, name: str, shape: Shape) -> np.ndarray:
    return np.frombuffer(buffer, _DTYPES[name]).reshape(shape)


def _join_chunks(pieces: dict[str, Any]) -> Leaf:
    """An array above 1 GB, which flax writes in flat pieces."""
    shape = [pieces["shape"][str(i)] for i in range(len(pieces["shape"]))]
    chunks = [pieces["chunks"][str(i)] for i in range(len(pieces["chunks"]))]
    _check_shape(shape)
    if not chunks or not all(isinstance(chunk, Leaf) for chunk in chunks):
        raise ConversionError("an array in pieces is malformed")
    if len({chunk.dtype for chunk in chunks}) != 1 or sum(math.prod(c.shape) for c in chunks) != math.prod(shape):
        raise ConversionError("the pieces of an array do not add up")
    return Leaf(tuple(shape), chunks[0].dtype, functools.partial(_concatenate, chunks, tuple(shape)))


def _concatenate(chunks: list[Leaf], shape: Shape) -> np.ndarray:
    return np.concatenate([chunk.read().ravel() for chunk in chunks]).reshape(shape)


def load(path: str | os.PathLike[str], shapes: Mapping[str, Shape], use_ema: bool) -> tuple[dict[str, Any], Report]:
    """Parameters from a ``checkpoint_N`` of score_sde, or from a bare parameter tree that flax serialised.

    Args:
      path: the file.
      shapes: path and shape of every parameter of the network.
      use_ema: the moving average (``params_ema``), or the raw weights (``optimizer.target``).

    Returns:
      (parameter tree, report); GroupNorm leaves are (C,) whatever they were.

    Raises:
      ConversionError: damaged, or of another network.
    """
    report = Report("score_sde_flax", str(path), "ema" if use_ema else "raw")
    return from_tree(read(path), shapes, report, use_ema), report


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Nested dicts of leaves of a file that flax serialised. Raises ConversionError if it is damaged."""
    try:
        with open_plain(path) as file:
            state = decode(file.read())
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error
    if not isinstance(state, dict):
        raise ConversionError(f"{path}: the file holds one {type(state).__name__}, not a training state")
    return state


def from_tree(
    state: Any, shapes: Mapping[str, Shape], report: Report, use_ema: bool, *, alone: bool = False
) -> dict[str, Any]:
    """Parameters from nested dicts of leaves with flax's names, a training state or a bare tree.

    Raises NoWeights if no array has such names, ConversionError as :func:`load` does.
    """
    for name in ("model_state", "batch_stats"):
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping) and flatten(state[name]):
            raise ConversionError(
                f"{report.path}: {name} is not empty; networks with running statistics are not supported"
            )
    found = choose(state, Leaf, Expected(list(shapes), separator="/"), report, use_ema, alone=alone)
    del state  # the optimiser's moments are two thirds of a training state
    return assemble([Pair(name, name) for name in shapes], found.arrays, shapes, report)
