"""Parameter trees by path, leaves that are read late, the report of a conversion, and putting a tree together.

A tree is a flat dict ``{"ResnetBlockBigGANpp_0/Conv_0/kernel": ...}`` here; :func:`nest` makes the nested one.
Nothing is read before every name and every shape agrees with the network of the config.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import jax
import ml_collections
import numpy as np

from pds_jax import cache, models
from pds_jax.models import get_model, init_model
from pds_jax.types import PdsError

Shape = tuple[int, ...]
FLOATS = ("float32", "float64", "float16", "bfloat16")


class ConversionError(PdsError):
    """A checkpoint that is damaged, unknown, or not of the network that the config describes."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of a checkpoint, not read yet."""

    shape: Shape
    dtype: str
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Pair:
    """Which leaf of the source is which leaf of ours: ours = source.transpose(axes), reshaped to our shape.

    ``aliases`` are other names that the source may use. ``part=(i, n)`` takes rows i, i + n, i + 2n, ... of the source
    only. ``ones`` trailing axes of length 1 of the source are dropped before the transpose.
    """

    target: str
    source: str
    axes: tuple[int, ...] | None = None
    aliases: tuple[str, ...] = ()
    part: tuple[int, int] | None = None
    ones: int = 0


@dataclasses.dataclass
class Report:
    """What a conversion did with every leaf.

    Attributes:
      kind: the kind of the source.
      path: the source.
      weights: ``"ema"`` or ``"raw"``.
      mapped: (source leaf, our leaf) of every parameter.
      reshaped: (our leaf, source shape, our shape) where axes or shape changed.
      unused: leaves of the source that no parameter comes from, each with the reason.
      notes: what a user should know, for example a noise schedule that the config does not share.
    """

    kind: str
    path: str
    weights: str
    mapped: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    reshaped: list[tuple[str, Shape, Shape]] = dataclasses.field(default_factory=list)
    unused: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Counts and notes, ready for JSON."""
        return {
            "kind": self.kind,
            "path": self.path,
            "weights": self.weights,
            "mapped": len(self.mapped),
            "reshaped": len(self.reshaped),
            "unused": len(self.unused),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [
            f"{self.path}: {self.kind}, {self.weights} weights",
            f"mapped {len(self.mapped)} leaves, reshaped {len(self.reshaped)} of them, left {len(self.unused)} unused",
        ]
        lines += [f"  mapped   {target} <- {source}" for source, target in self.mapped]
        lines += [f"  reshaped {target} {old} -> {new}" for target, old, new in self.reshaped]
        lines += [f"  unused   {what}" for what in self.unused]
        lines += [f"  note     {note}" for note in self.notes]
        return "\n".join(lines)


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves of nested dicts by path ``a/b/c``, in the order of the dicts; any depth."""
    flat: dict[str, Any] = {}
    waiting: list[tuple[str, Any]] = [("", tree)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, Mapping):
            prefix = f"{path}/" if path else ""
            waiting += [(f"{prefix}{key}", child) for key, child in reversed(list(value.items()))]
        else:
            flat[path] = value
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts from leaves by path, the inverse of :func:`flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def template(config: Any) -> dict[str, Shape]:
    """Path and shape of every parameter of the network that a config describes; nothing is computed.

    Args:
      config: a score_sde config.

    Returns:
      ``{path: shape}``.

    Raises:
      PdsError: the config describes no network.
    """
    return dict(_template(json.dumps(config.to_dict(), sort_keys=True, default=str)))


@functools.lru_cache(maxsize=16)
def _template(config_json: str) -> tuple[tuple[str, Shape], ...]:
    config = ml_collections.ConfigDict(json.loads(config_json))

    def trace() -> list[Any]:
        tree = jax.eval_shape(functools.partial(init_model, config=config), jax.random.key(0))
        return [[path, list(leaf.shape)] for path, leaf in flatten(tree).items()]

    if get_model(config.model.name).__module__.startswith(f"{models.__name__}."):
        code = cache.code_digest(os.path.dirname(models.__file__))
        key = f"{flax.__version__} {jax.__version__} {code} {config_json}"
        rows = cache.remembered("layout", key, trace, _is_layout)
    else:  # somebody's own network, whose code is not known here
        rows = trace()
    return tuple((path, tuple(shape)) for path, shape in rows)


def _is_layout(value: Any) -> bool:
    def is_row(row: Any) -> bool:
        return isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) and isinstance(row[1], list)

    return isinstance(value, list) and all(is_row(row) and all(type(n) is int for n in row[1]) for row in value)


def source_shape(shape: Shape, pair: Pair) -> Shape:
    """Shape of the source leaf that a pair turns into ``shape``."""
    if pair.axes is not None:
        shape = tuple(shape[pair.axes.index(axis)] for axis in range(len(pair.axes)))
    if pair.part is not None:
        shape = (shape[0] * pair.part[1], *shape[1:])
    return shape + (1,) * pair.ones


def from_source(value: np.ndarray, pair: Pair) -> np.ndarray:
    """Our leaf from the source's, up to a reshape."""
    if pair.part is not None:
        value = value[pair.part[0] :: pair.part[1]]
    if pair.ones:
        value = value.reshape(value.shape[: -pair.ones])
    return value if pair.axes is None else value.transpose(pair.axes)


def to_source(flat: Mapping[str, np.ndarray], pairs: Sequence[Pair]) -> dict[str, np.ndarray]:
    """Leaves of the source from Flax leaves by path, the inverse of :func:`from_source`; in the order of the pairs."""
    arrays: dict[str, np.ndarray] = {}
    for pair in pairs:
        value = flat[pair.target]
        if pair.axes is not None:
            value = value.transpose(np.argsort(pair.axes))
        value = value.reshape(value.shape + (1,) * pair.ones)
        if pair.part is None:
            arrays[pair.source] = np.array(value, order="C")
        else:
            first, step = pair.part
            shape = (step * len(value), *value.shape[1:])
            arrays.setdefault(pair.source, np.empty(shape, value.dtype))[first::step] = value
    return arrays


def _same_but_for_ones(a: Shape, b: Shape) -> bool:
    """(1, 1, 1, C) and (C,): the old and the new layout of a norm's leaves."""
    return a[-1:] == b[-1:] and set(a[:-1]) <= {1} and set(b[:-1]) <= {1}


def assemble(
    pairs: Sequence[Pair], sources: Mapping[str, Leaf], shapes: Mapping[str, Shape], report: Report
) -> dict[str, Any]:
    """Check that source and network agree leaf by leaf, then read the parameters.

    Args:
      pairs: every parameter of the network with its source.
      sources: every leaf of the source that should become a parameter.
      shapes: path and shape of every parameter of the network.
      report: filled with what was mapped and reshaped.

    Returns:
      The nested parameter tree, float32.

    Raises:
      ConversionError: a leaf is missing, left over, of another shape, not of floats, or not finite.
    """
    found = match(pairs, sources, report.path)
    for pair, name in found:
        _check_leaf(pair, name, sources[name], shapes[pair.target], report.path)
    params = {}
    for pair, name in found:
        leaf, shape = sources[name], shapes[pair.target]
        value = from_source(leaf.read(), pair)
        params[pair.target] = _to_float32(value, name, report.path).reshape(shape)
        report.mapped.append((name, pair.target))
        if pair.axes is not None or leaf.shape != shape:
            report.reshaped.append((pair.target, leaf.shape, shape))
    _note_dtypes([sources[name].dtype for _, name in found], report)
    return nest({path: params[path] for path in shapes})


def _note_dtypes(dtypes: list[str], report: Report) -> None:
    for dtype in ("float16", "bfloat16", "float64"):
        if dtype in dtypes:
            report.notes.append(f"{dtypes.count(dtype)} of {len(dtypes)} leaves are {dtype}; they became float32")


def match(pairs: Sequence[Pair], sources: Mapping[str, Leaf], path: str) -> list[tuple[Pair, str]]:
    """Find every parameter in the source.

    Args:
      pairs: every parameter of the network with its source.
      sources: every leaf of the source that should become a parameter.
      path: the source, for messages.

    Returns:
      (pair, the name under which the source holds it).

    Raises:
      ConversionError: naming the first leaf that is missing, or that is left over.
    """
    found, missing = [], []
    for pair in pairs:
        name = next((name for name in (pair.source, *pair.aliases) if name in sources), None)
        if name is None:
            missing.append(pair)
        else:
            found.append((pair, name))
    used = {name for _, name in found}
    left_over = [name for name in sources if name not in used]
    hint = (
        f"the checkpoint has {len(sources)} leaves, the network of the config needs {len(pairs)}; "
        "is this the config it was trained with?"
    )
    if missing:
        first = missing[0]
        also = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        extra = f"; it has a left-over leaf {left_over[0]!r}" if left_over else ""
        raise ConversionError(f"{path}: leaf {first.source!r}, our {first.target!r}, is missing{also}{extra}; {hint}")
    if left_over:
        also = f" (and {len(left_over) - 1} more)" if len(left_over) > 1 else ""
        raise ConversionError(f"{path}: leaf {left_over[0]!r} is left over{also}: the network has no such one; {hint}")
    return found


def _check_leaf(pair: Pair, name: str, leaf: Leaf, shape: Shape, path: str) -> None:
    expected = source_shape(shape, pair)
    if leaf.shape != expected and not _same_but_for_ones(leaf.shape, expected):
        raise ConversionError(
            f"{path}: leaf {name!r} has shape {leaf.shape}, but our {pair.target!r} of shape {shape} needs {expected}; "
            "is this the config it was trained with?"
        )
    if leaf.dtype not in FLOATS:
        raise ConversionError(f"{path}: leaf {name!r} is of {leaf.dtype}; weights are one of {', '.join(FLOATS)}")


def _to_float32(value: np.ndarray, name: str, path: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        value = np.array(value, np.float32, order="C")
    if not np.isfinite(value).all():
        raise ConversionError(f"{path}: leaf {name!r} holds NaN or infinity; the file is damaged or training diverged")
    return value


def check_params(params: Mapping[str, Any], config: Any) -> dict[str, np.ndarray]:
    """Check a parameter tree against the network of a config, before it is written.

    Args:
      params: nested dicts of arrays.
      config: a score_sde config.

    Returns:
      ``{path: array}``, float32, in the network's order.

    Raises:
      ConversionError: see :func:`assemble`.
    """
    shapes = template(config)
    flat = {path: np.asarray(value) for path, value in flatten(params).items()}
    sources = {
        path: Leaf(tuple(value.shape), value.dtype.name, functools.partial(_identity, value))
        for path, value in flat.items()
    }
    for path, shape in shapes.items():
        if path in sources and sources[path].shape != shape:
            raise ConversionError(
                f"parameter {path!r} has shape {sources[path].shape}, the network of the config needs {shape}"
            )
    report = Report("params", "the parameters", "raw")
    return flatten(assemble([Pair(path, path) for path in shapes], sources, shapes, report))


def _identity(value: np.ndarray) -> np.ndarray:
    return value
