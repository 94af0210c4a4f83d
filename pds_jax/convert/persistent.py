"""Pickles of EDM: objects that carry the program text of their class, read without looking at that text.

An object is ``_reconstruct_persistent_obj(meta)``, where ``meta`` holds a class name and the object's attributes;
tensors lie in the pickle as streams of ``torch.save``. Both become plain data here: a ``PickledObject`` is a name and a
dictionary, a tensor a view of bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from pds_jax.convert.pickles import KNOWN_NAMES, Function, Machine, PickledObject, Storage, Tensor
from pds_jax.convert.torch_files import leaf_of, load_legacy, open_plain
from pds_jax.convert.tree import ConversionError, Leaf

_MODULE = "torch_utils.persistence"
_FUNCTION = "_reconstruct_persistent_obj"
_MODULE_DICT = "torch.nn.modules.container.ModuleDict"
_VERSION = 6


@dataclasses.dataclass(frozen=True)
class _Embedded(Storage):
    """A storage whose numbers lie in the pickle: ``stream`` is all of its bytes, ``read`` gives the numbers'."""

    stream: bytes = dataclasses.field(default=b"", compare=False, repr=False)
    read: Callable[[Storage], bytes] | None = dataclasses.field(default=None, compare=False, repr=False)


def is_persistent(head: bytes) -> bool:
    """Whether the first bytes of a pickle ask for a persistent object."""
    return _MODULE.encode() in head and _FUNCTION.encode() in head


def _reconstruct(meta: Any) -> PickledObject:
    fields = meta if isinstance(meta, dict) else {}
    name, state = fields.get("class_name"), fields.get("state")
    if fields.get("type") != "class" or not isinstance(name, str) or not isinstance(state, dict):
        raise ConversionError("a persistent object of the pickle is malformed")
    if fields.get("version") != _VERSION:
        raise ConversionError(f"a persistent object is of version {fields.get('version')!r}; known: {_VERSION}")
    return PickledObject(name, state)


def _load_from_bytes(data: Any) -> _Embedded:
    if not isinstance(data, bytes):
        raise ConversionError("a storage in the pickle is not made of bytes")
    storage, read = load_legacy(io.BytesIO(data))
    if not isinstance(storage, Storage):
        raise ConversionError("a stream of torch.save in the pickle holds no storage")
    return _Embedded(storage.key, storage.dtype, storage.numel, data, read)


NAMES: Mapping[str, Any] = {
    **KNOWN_NAMES,
    f"{_MODULE}.{_FUNCTION}": Function(_reconstruct),
    "torch.storage._load_from_bytes": Function(_load_from_bytes),
    _MODULE_DICT: Function(lambda: PickledObject("ModuleDict", {})),
}


def _no_persistent_id(_: Any) -> Any:
    raise ConversionError("the pickle refers to something outside of itself")


def _read_numbers(storage: Storage) -> bytes:
    if not isinstance(storage, _Embedded) or storage.read is None:
        raise ConversionError("a tensor's numbers are not in the pickle")
    return storage.read(storage)


@contextlib.contextmanager
def opened_pickle(path: str | os.PathLike[str]) -> Iterator[tuple[Any, Callable[[Tensor], Leaf]]]:
    """Read a pickle of persistent objects, possibly compressed by gzip.

    Yields the object, made of dicts, lists, numbers, ``PickledObject`` and ``Tensor``, and a function that turns a
    tensor into a leaf. Raises ConversionError if the file is damaged or asks for anything else.
    """
    name = pathlib.Path(path).name
    with open_plain(path) as file:
        try:
            value = Machine(_no_persistent_id, NAMES).run(file)
            if file.read(1):
                raise ConversionError("bytes follow the end of the pickle")
        except ConversionError as error:
            raise ConversionError(f"{name}: {error}") from error
        except Exception as error:  # whatever malformed bytes make the parsers raise
            raise ConversionError(f"{name} is damaged or no pickle: {error}") from error
        yield value, functools.partial(leaf_of, read=_read_numbers, name=name)


def module_tensors(module: PickledObject) -> Iterator[tuple[str, Tensor, bool]]:
    """(state-dict name, tensor, whether it is a buffer) of a pickled ``torch.nn.Module``, in its order.

    Raises ConversionError where the attributes are not those of a tree of modules.
    """
    seen: set[int] = set()  # a pickle can hold a module inside itself
    waiting = [("", module)]
    while waiting:
        path, module = waiting.pop()
        if id(module) in seen:
            raise ConversionError(f"the module {path.removesuffix('.')!r} is in the network twice")
        seen.add(id(module))
        for kind in ("_parameters", "_buffers"):
            for name, value in _items(module, kind):
                if isinstance(value, Tensor):
                    yield f"{path}{name}", value, kind == "_buffers"
                elif value is not None:
                    raise ConversionError(f"{path}{name} is neither a tensor nor None")
        children = []
        for name, child in _items(module, "_modules"):
            if isinstance(child, PickledObject):
                children.append((f"{path}{name}.", child))
            elif child is not None:
                raise ConversionError(f"{path}{name} is no module")
        waiting += reversed(children)


def _items(module: PickledObject, kind: str) -> list[tuple[str, Any]]:
    table = module.state.get(kind)
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table):
        raise ConversionError(f"an object of class {module.name} has no {kind}: it is no network")
    return list(table.items())


def with_numbers(data: bytes, replaced: list[tuple[Tensor, np.ndarray]]) -> bytes:
    """A pickle's bytes with the numbers of some tensors replaced; nothing else changes, the length least of all.

    Raises ConversionError for a tensor that is not a whole contiguous storage of float32.
    """
    out, position = bytearray(data), 0
    for tensor, array in replaced:
        storage = tensor.storage
        whole = isinstance(storage, _Embedded) and tensor.offset == 0 and storage.numel == array.size
        strides = tuple(int(step) // 4 for step in np.empty(tensor.shape, np.float32).strides)
        if not whole or storage.dtype != "float32" or tensor.strides != strides or tensor.shape != array.shape:
            raise ConversionError("a tensor of the snapshot is not a storage of float32 of its own; it stays unwritten")
        assert isinstance(storage, _Embedded)
        start = data.find(storage.stream, position)
        if start < 0:
            start = data.index(storage.stream)
        position = start + len(storage.stream)
        numbers = np.ascontiguousarray(array, "<f4").tobytes()
        out[position - len(numbers) : position] = numbers
    return bytes(out)
