"""Writing that never leaves half a file behind, checksums, and the seed list of a run."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable
from typing import IO, Any

from pds_jax.types import PdsError

_RANGE = re.compile(r"^\s*(\d+)\s*(?:-\s*(\d+)\s*)?$")
_MAX_SEEDS = 10_000_000


def atomic_write(path: str | os.PathLike[str], write: Callable[[IO[bytes]], object]) -> None:
    """Write a file through a temporary neighbour and one rename.

    Args:
      path: where the file goes; missing folders are made.
      write: called with a binary file object to write into.

    Raises:
      PdsError: no permission, no space or no such place; nothing is left half-written.
    """
    target = pathlib.Path(path)
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except OSError as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise PdsError(
            f"cannot write {target}: {error.strerror or error}; free some space or choose another folder"
        ) from error


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as readable JSON, atomically (see :func:`atomic_write`)."""
    text = json.dumps(value, indent=1, sort_keys=True, default=str) + "\n"
    atomic_write(path, lambda file: file.write(text.encode()))


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read JSON.

    Raises:
      PdsError: the file is missing or is not JSON.
    """
    try:
        return json.loads(pathlib.Path(path).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PdsError(f"cannot read {path} as JSON: {error}") from error


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def parse_seeds(text: str) -> list[int]:
    """Read a seed list such as ``"0-63"`` or ``"0-7,12,20-29"``; both ends are included.

    >>> parse_seeds("0-3,9")
    [0, 1, 2, 3, 9]

    Args:
      text: comma-separated seeds and ranges.

    Returns:
      The seeds in the order given.

    Raises:
      PdsError: malformed, empty, descending or repeated seeds.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = _RANGE.match(part)
        if match is None:
            raise PdsError(f"--seeds={text!r}: {part!r} is neither a seed like 7 nor a range like 0-63")
        first = int(match[1])
        last = int(match[2]) if match[2] else first
        if last < first:
            raise PdsError(f"--seeds={text!r}: the range {part.strip()!r} runs backwards")
        if last >= 2**32:
            raise PdsError(f"--seeds={text!r}: {last} is not below 2^32")
        if len(seeds) + last - first + 1 > _MAX_SEEDS:
            raise PdsError(f"--seeds={text!r}: more than {_MAX_SEEDS} seeds; split the run")
        seeds.extend(range(first, last + 1))
    repeated = _first_repeated(seeds)
    if repeated is not None:
        raise PdsError(f"--seeds={text!r}: seed {repeated} is given twice; each seed makes one image")
    return seeds


def _first_repeated(values: Iterable[int]) -> int | None:
    seen: set[int] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
