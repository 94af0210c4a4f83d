"""Checkpoints of Flax in the form of orbax: a folder of one tree, of several trees by name, or of steps."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging

from pds_jax.convert.score_sde import from_tree
from pds_jax.convert.tree import ConversionError, Leaf, Report, Shape

_TREE = ("_METADATA", "manifest.ocdbt", "_sharding")
_STEP = re.compile(r"(?:\w+[_-])?(\d+)")


@contextlib.contextmanager
def quiet(level: int = logging.WARNING) -> Iterator[None]:
    """Without orbax's many lines of information, or with ``logging.ERROR`` without its warnings too."""
    before = logging.get_verbosity()
    logging.set_verbosity(min(before, level))
    try:
        yield
    finally:
        logging.set_verbosity(before)


def trees(place: str | os.PathLike[str]) -> dict[str, pathlib.Path]:
    """The trees of a checkpoint by name ("" for the only one), of the newest step in a folder of steps; else none."""
    folder = pathlib.Path(place)
    if _is_tree(folder):
        return {"": folder}
    inner = {path.name: path for path in _folders(folder)}
    items = {name: path for name, path in inner.items() if _is_tree(path) and not _STEP.fullmatch(name)}
    if items:
        return items if len(items) > 1 else {"": next(iter(items.values()))}
    steps = {int(match[1]): path for name, path in inner.items() if (match := _STEP.fullmatch(name))}
    for step in sorted(steps, reverse=True):
        found = trees(steps[step]) if _is_tree(steps[step]) or not _holds_steps(steps[step]) else {}
        if found:
            return found
    return {}


def _is_tree(folder: pathlib.Path) -> bool:
    return any((folder / name).is_file() for name in _TREE)


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError as error:
        raise ConversionError(f"cannot read {folder}: {error}") from error


def _holds_steps(folder: pathlib.Path) -> bool:
    return any(_STEP.fullmatch(path.name) for path in _folders(folder))


def read(place: str | os.PathLike[str]) -> dict[str, Any]:
    """Nested dicts and lists of leaves of a checkpoint.

    Raises ConversionError if there is none, or if it is damaged.
    """
    found = trees(place)
    if not found:
        raise ConversionError(f"{place} holds no checkpoint of orbax")
    values = {name: _restore(folder) for name, folder in found.items()}
    return values[""] if set(values) == {""} else values


def _restore(folder: pathlib.Path) -> Any:
    import jax
    import orbax.checkpoint as ocp

    try:
        with quiet(logging.ERROR), contextlib.closing(ocp.PyTreeCheckpointer()) as reader:
            tree = reader.metadata(folder.absolute()).item_metadata.tree
            as_arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            return jax.tree.map(_leaf, reader.restore(folder.absolute(), restore_args=as_arrays))
    except Exception as error:  # orbax and tensorstore share no narrower base
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ConversionError(f"{folder} is damaged, or not a checkpoint of orbax: {reason}") from error


def _leaf(value: Any) -> Any:
    array = np.asarray(value)
    return Leaf(array.shape, array.dtype.name, functools.partial(np.asarray, array))


def load(path: str | os.PathLike[str], shapes: Mapping[str, Shape], use_ema: bool) -> tuple[dict[str, Any], Report]:
    """Parameters from a checkpoint of orbax with score_sde's names, a training state or a bare tree.

    Raises ConversionError if it is damaged or of another network.
    """
    report = Report("orbax", str(path), "ema" if use_ema else "raw")
    found = trees(path)
    if found and pathlib.Path(path) not in found.values():
        report.notes.append(f"read {', '.join(str(folder.relative_to(path)) for folder in found.values())}")
    return from_tree(read(path), shapes, report, use_ema), report
