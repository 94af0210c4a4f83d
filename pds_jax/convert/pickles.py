"""A pickle reader that executes no code: it supports only the opcodes and names that PyTorch checkpoints use.

``pickletools.genops`` splits the bytes into opcodes; the loop below keeps the stack. A name (GLOBAL) is looked up in a
table of our own functions and never imported. A name that is not in the table is an error, or with ``ANY_CLASS`` an
:class:`OtherObject`, which is never made: only its attributes are kept. Memory stays linear in the file: no function
copies more than a few bytes. Dictionary keys must be plain, because hashing a nested tuple can take exponential time.
"""

from __future__ import annotations

import dataclasses
import functools
import pickletools
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import numpy as np

from pds_jax.convert.tree import ConversionError, Shape

MAX_OPCODES = 2_000_000
MAX_BYTES = 1 << 16
MAX_RANK = 16
_MARK = object()


@dataclasses.dataclass(frozen=True)
class Constant:
    """A name that is only ever passed on, such as a storage type or a dtype."""

    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of numbers in the file."""

    key: str
    dtype: str
    numel: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A strided view of a storage, not read yet."""

    storage: Storage
    offset: int
    shape: Shape
    strides: Shape

    @property
    def dtype(self) -> str:
        """That of its storage."""
        return self.storage.dtype


@dataclasses.dataclass(eq=False)
class PickledObject:
    """An object of which only the name of its class and its attributes are read."""

    name: str
    state: dict[str, Any]


@dataclasses.dataclass(eq=False)
class OtherObject(PickledObject):
    """An object that a checkpoint holds beside its weights, of any class: never made, its dictionaries are kept.

    ``parts`` are those that it was made from or given as its state, not copied; ``state`` is what was set by key.
    """

    parts: list[dict[Any, Any]] = dataclasses.field(default_factory=list)

    def take(self, values: Any) -> None:
        """Keep the dictionaries among some arguments, or of a state, which is a tuple of two for a class with slots."""
        self.parts += [value for value in (values if isinstance(values, tuple) else (values,)) if type(value) is dict]


@dataclasses.dataclass(frozen=True)
class Function:
    """A name that a pickle calls, and the function ``call`` that replaces it."""

    call: Callable[..., Any]


STORAGE_DTYPES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}


def _integers(values: Any, what: str) -> Shape:
    if not isinstance(values, tuple) or len(values) > MAX_RANK:
        raise ConversionError(f"a tensor's {what} is not a tuple of at most {MAX_RANK} sizes")
    if not all(type(value) is int and 0 <= value < 2**48 for value in values):
        raise ConversionError(f"a tensor's {what} is not a tuple of sizes")
    return values


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """torch._utils._rebuild_tensor_v2; what follows the strides (requires_grad, hooks) does not matter here."""
    shape, strides = _integers(size, "shape"), _integers(stride, "strides")
    if not isinstance(storage, Storage) or len(shape) != len(strides):
        raise ConversionError("a tensor is not a strided view of a storage")
    _integers((offset,), "offset")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.numel:
        raise ConversionError(f"a tensor of shape {shape} reaches past the {storage.numel} numbers of its storage")
    return Tensor(storage, offset, shape, strides)


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    if not isinstance(data, Tensor):
        raise ConversionError("a parameter is not a tensor")
    return data


def _dictionary() -> dict[Any, Any]:
    return {}


_NUMBERS = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1")


def _numpy_dtype(text: Any, *_: Any) -> np.dtype:
    if text not in _NUMBERS:
        raise ConversionError("a pickled NumPy dtype is not of plain numbers")
    return np.dtype(text).newbyteorder("<")


def _numpy_scalar(dtype: Any, data: Any) -> int | float | bool:
    if not isinstance(dtype, np.dtype) or not isinstance(data, bytes) or len(data) != dtype.itemsize:
        raise ConversionError("a pickled NumPy scalar is malformed")
    return np.frombuffer(data, dtype)[0].item()


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or len(text) > MAX_BYTES or encoding != "latin1":
        raise ConversionError("pickled bytes are malformed")
    return text.encode("latin1")


def _size(values: Any = ()) -> Shape:
    return _integers(values, "shape")


def _known_names() -> Mapping[str, Any]:
    names: dict[str, Any] = {f"torch.{name}": Constant(name) for name in STORAGE_DTYPES}
    for dtype in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool"):
        names[f"torch.{dtype}"] = Constant(dtype)
    functions: dict[str, Callable[..., Any]] = {
        "collections.OrderedDict": _dictionary,
        "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
        "torch._utils._rebuild_tensor": _rebuild_tensor,
        "torch._utils._rebuild_parameter": _rebuild_parameter,
        "torch.Size": _size,
        "numpy.dtype": _numpy_dtype,
        "numpy.core.multiarray.scalar": _numpy_scalar,
        "numpy._core.multiarray.scalar": _numpy_scalar,
        "_codecs.encode": _encode,
    }
    names.update({name: Function(call) for name, call in functions.items()})
    return names


KNOWN_NAMES = _known_names()

# Names whose only use in a pickle is to run, read or write something: a file that asks for one is refused.
_DANGEROUS_MODULES = frozenset(
    "os posix nt sys subprocess shutil socket importlib runpy ctypes pty marshal pickle _pickle dill cloudpickle "
    "joblib webbrowser commands signal urllib http requests tempfile pip zipimport imp bdb pdb".split()
)
_DANGEROUS_NAMES = ("io.open", "_io.open", "io.FileIO", "_io.FileIO", "numpy.load", "numpy.fromfile", "torch.load")
_BUILTIN_MODULES = ("builtins", "__builtin__", "exceptions")
_HARMLESS_BUILTINS = frozenset(
    "bool bytearray bytes complex dict float frozenset getattr int list object range set slice str tuple type unicode "
    "long xrange NotImplementedType".split()
)


class _AnyClass(Mapping[str, Any]):
    """Names for :class:`Machine`: the known ones, and for every other one a function that makes an OtherObject."""

    def __init__(self) -> None:
        lenient: dict[str, Callable[..., Any]] = {
            "numpy.dtype": _any_dtype,
            "numpy.core.multiarray.scalar": _any_scalar,
            "numpy._core.multiarray.scalar": _any_scalar,
            "_codecs.encode": _any_bytes,
            "torch._utils._rebuild_tensor_v2": _any_tensor,
            "torch._utils._rebuild_tensor": _any_tensor,
            "torch._utils._rebuild_parameter": _first,
            "torch._utils._rebuild_parameter_with_state": _first,
            "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
        }
        self._known = {**KNOWN_NAMES, **{name: Function(call) for name, call in lenient.items()}}

    def __contains__(self, name: object) -> bool:
        return name in self._known or (isinstance(name, str) and not _is_dangerous(name))

    def __getitem__(self, name: str) -> Any:
        return self._known[name] if name in self._known else Function(functools.partial(_other, name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def _is_dangerous(name: str) -> bool:
    module, _, last = name.partition(".")
    if module in _BUILTIN_MODULES:
        return last not in _HARMLESS_BUILTINS and not last.endswith(("Error", "Exception", "Warning"))
    return module in _DANGEROUS_MODULES or name.startswith((*_DANGEROUS_NAMES, "torch.hub."))


def _other(name: str, *arguments: Any) -> OtherObject:
    made = OtherObject(name, {})
    made.take(arguments)
    return made


def _any_dtype(text: Any = None, *_: Any) -> Any:
    return _numpy_dtype(text) if text in _NUMBERS else OtherObject("numpy.dtype", {})


def _any_scalar(dtype: Any = None, data: Any = None) -> Any:
    return _numpy_scalar(dtype, data) if isinstance(dtype, np.dtype) else OtherObject("numpy.scalar", {})


def _any_bytes(text: Any, encoding: Any) -> Any:
    """Bytes of an array beside the weights, which nobody reads, are not copied."""
    long = isinstance(text, str) and len(text) > MAX_BYTES
    return OtherObject("bytes", {}) if long else _encode(text, encoding)


def _any_tensor(storage: Any, *arguments: Any) -> Any:
    return OtherObject("tensor", {}) if isinstance(storage, OtherObject) else _rebuild_tensor(storage, *arguments)


def _first(data: Any, *_: Any) -> Any:
    return data


def _rebuild_from_type(function: Any, _: Any, arguments: Any, *__: Any) -> Any:
    """A tensor of a subclass of torch.Tensor."""
    if not isinstance(function, Function) or not isinstance(arguments, tuple):
        raise ConversionError("a tensor of a subclass is malformed")
    return function.call(*arguments)


ANY_CLASS = _AnyClass()


_PLAIN = (str, int, float, bytes, type(None), Constant, Function, OtherObject, Tensor)


def _plain_key(key: Any) -> Any:
    flat = key if type(key) is tuple and len(key) <= MAX_RANK else (key,)
    if not all(isinstance(part, _PLAIN) for part in flat):
        raise ConversionError("a dictionary key in the pickle is neither a string nor a number")
    return key


class Machine:
    """The stack machine of one pickle."""

    def __init__(self, persistent: Callable[[Any], Any], names: Mapping[str, Any] = KNOWN_NAMES):
        """Start with an empty stack.

        ``persistent`` turns the tuple of a persistent id into an object, for PyTorch a storage. ``names`` is what each
        name that the pickle may ask for stands for.
        """
        self._persistent = persistent
        self._names = names
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, source: bytes | IO[bytes]) -> Any:
        """Read one pickle, up to its STOP.

        Args:
          source: the bytes, or a file positioned at the pickle; the file ends up behind it.

        Returns:
          Dicts, lists, tuples, numbers, strings, :class:`Tensor`.

        Raises:
          ConversionError: the pickle asks for anything else. Malformed bytes may raise other exceptions as well; the
            caller turns them into a ConversionError.
        """
        for number, (opcode, argument, _) in enumerate(pickletools.genops(source)):
            if number > MAX_OPCODES:
                raise ConversionError(f"the pickle has more than {MAX_OPCODES} opcodes; no checkpoint does")
            if opcode.name == "STOP":
                return self._stack.pop()
            self._step(opcode.name, argument)
        raise ConversionError("the pickle ends early")

    def _step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self._stack.append(_LITERALS[name](argument))
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        else:
            raise ConversionError(f"the pickle uses the opcode {name}, which no checkpoint of weights needs")

    def _pop_to_mark(self) -> list[Any]:
        items = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _top(self, kind: type) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise ConversionError(
                f"the pickle uses a {type(self._stack[-1]).__name__} where a {kind.__name__} is required; the file is "
                "damaged"
            )
        return self._stack[-1]

    def _tuple(self, length: int | None) -> None:
        if length is None:
            items = self._pop_to_mark()
        else:
            items = [self._stack.pop() for _ in range(length)][::-1]
        self._stack.append(tuple(items))

    def _append(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], OtherObject):
            self._top(list).extend(items)

    def _set(self, items: list[Any]) -> None:
        top = self._stack[-1]
        target = top.state if isinstance(top, OtherObject) else self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if _plain_key(key) in target:
                raise ConversionError("a dictionary in the pickle has a key twice")
            target[key] = value

    def _dict(self, items: list[Any]) -> None:
        self._stack.append({})
        self._set(items)

    def _set_one(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def _global(self, name: str) -> None:
        if name not in self._names:
            raise ConversionError(
                f"the pickle asks for {name!r}, which is not on the list of names that a checkpoint needs; "
                "nothing of it was run. If you trust the file, save its weights again as plain tensors"
            )
        self._stack.append(self._names[name])

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ConversionError("the pickle names something by other than strings")
        self._global(f"{module}.{name}")

    def _reduce(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if isinstance(function, OtherObject):
            function = Function(functools.partial(_other, function.name))
        if not isinstance(function, Function) or not isinstance(arguments, tuple):
            raise ConversionError("the pickle calls something that is not a function")
        self._stack.append(function.call(*arguments))

    def _new_with_keywords(self) -> None:
        keywords, arguments, function = (self._stack.pop() for _ in range(3))
        self._stack += [function, arguments]
        self._reduce()
        if not isinstance(self._stack[-1], OtherObject):
            raise ConversionError("the pickle calls something with keywords that takes none")
        self._stack[-1].take(keywords)

    def _add(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], OtherObject):
            self._top(set).update(_plain_key(item) for item in items)

    def _build(self) -> None:
        """State of an object, or of an OrderedDict (its ``_metadata``) or a dtype, where it changes no value."""
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, OtherObject):
            target.take(state)
            return
        if isinstance(target, PickledObject):
            if target.state or not isinstance(state, dict):
                raise ConversionError("the pickle sets the state of an object twice, or not to a dictionary")
            target.state.update(state)
            return
        little = isinstance(target, np.dtype) and isinstance(state, tuple) and state[1:2] in (("<",), ("|",))
        if not isinstance(target, dict | Tensor) and not little:
            raise ConversionError("the pickle sets the state of something other than a dictionary")

    def _frozenset(self, items: list[Any]) -> None:
        self._stack.append(frozenset(_plain_key(item) for item in items))

    def _pop(self) -> None:
        self._stack.pop()

    def _drop(self, items: list[Any]) -> None:
        """What a pickle of a tuple inside itself leaves on the stack."""

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise ConversionError("the pickle recalls something it never stored")
        self._stack.append(self._memo[index])

    def _store_persistent(self) -> None:
        self._stack.append(self._persistent(self._stack.pop()))


_VALUE_OPCODES = (
    "BINUNICODE SHORT_BINUNICODE BINUNICODE8 UNICODE BININT BININT1 BININT2 INT LONG LONG1 LONG4 BINFLOAT FLOAT "
    "SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8 BINSTRING SHORT_BINSTRING"
).split()


def _value(argument: Any) -> Any:
    return argument


_LITERALS: dict[str, Callable[[Any], Any]] = {
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_DICT": lambda _: {},
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_SET": lambda _: set(),
    "MARK": lambda _: _MARK,
    **{name: _value for name in _VALUE_OPCODES},
}


def _nothing(_: Machine, __: Any) -> None:
    """PROTO and FRAME say how the bytes are packed."""


_ACTIONS: dict[str, Callable[[Machine, Any], None]] = {
    "PROTO": _nothing,
    "FRAME": _nothing,
    "TUPLE": lambda m, _: m._tuple(None),
    "TUPLE1": lambda m, _: m._tuple(1),
    "TUPLE2": lambda m, _: m._tuple(2),
    "TUPLE3": lambda m, _: m._tuple(3),
    "APPEND": lambda m, _: m._append([m._stack.pop()]),
    "APPENDS": lambda m, _: m._append(m._pop_to_mark()),
    "SETITEM": lambda m, _: m._set_one(),
    "SETITEMS": lambda m, _: m._set(m._pop_to_mark()),
    "DICT": lambda m, _: m._dict(m._pop_to_mark()),
    "LIST": lambda m, _: m._stack.append(m._pop_to_mark()),
    "GLOBAL": lambda m, argument: m._global(argument.replace(" ", ".")),
    "STACK_GLOBAL": lambda m, _: m._stack_global(),
    "ADDITEMS": lambda m, _: m._add(m._pop_to_mark()),
    "REDUCE": lambda m, _: m._reduce(),
    "NEWOBJ": lambda m, _: m._reduce(),
    "NEWOBJ_EX": lambda m, _: m._new_with_keywords(),
    "FROZENSET": lambda m, _: m._frozenset(m._pop_to_mark()),
    "POP": lambda m, _: m._pop(),
    "POP_MARK": lambda m, _: m._drop(m._pop_to_mark()),
    "BUILD": lambda m, _: m._build(),
    "PUT": lambda m, argument: m._put(argument),
    "BINPUT": lambda m, argument: m._put(argument),
    "LONG_BINPUT": lambda m, argument: m._put(argument),
    "MEMOIZE": lambda m, _: m._put(len(m._memo)),
    "GET": lambda m, argument: m._get(argument),
    "BINGET": lambda m, argument: m._get(argument),
    "LONG_BINGET": lambda m, argument: m._get(argument),
    "BINPERSID": lambda m, _: m._store_persistent(),
}
